//! The learning rate over a run: a linear warm-up, then half a cosine down to a tenth.

/// Where the cosine ends, as a share of the peak.
pub const FLOOR: f64 = 0.1;

/// The learning rate of step `step` (from 0) of `steps`, of which the first `warmup` rise to `peak`.
pub fn learning_rate(step: usize, steps: usize, warmup: usize, peak: f64) -> f64 {
    if step < warmup {
        return peak * (step + 1) as f64 / warmup as f64;
    }
    let left = steps.saturating_sub(warmup).max(1);
    let progress = ((step - warmup) as f64 / left as f64).min(1.0);
    peak * (FLOOR + (1.0 - FLOOR) * 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rises_to_the_peak_and_falls_to_a_tenth() {
        let rate = |step| learning_rate(step, 110, 10, 1.0);
        assert_eq!((rate(0), rate(9), rate(10)), (0.1, 1.0, 1.0));
        assert!((rate(60) - 0.55).abs() < 1e-12);
        assert!((rate(110) - FLOOR).abs() < 1e-12);
        assert!((10..110).all(|step| rate(step + 1) <= rate(step)));
        assert_eq!(learning_rate(500, 110, 10, 1.0), FLOOR, "past the end");
        assert_eq!(learning_rate(0, 5, 0, 2.0), 2.0, "no warm-up");
    }
}
