//! The loss of a run as an SVG chart.

use crate::trainer::Step;
use std::fmt::Write;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 360.0;
const LEFT: f64 = 56.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 20.0;
const BOTTOM: f64 = 44.0;

/// An SVG line chart of the loss by step: every step faintly, a running mean over a fiftieth of the run, and the loss on
/// held-out text where it was measured.
pub fn loss(steps: &[Step]) -> String {
    let (low, high) = steps
        .iter()
        .flat_map(|s| std::iter::once(s.loss).chain(s.held_out))
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), loss| (low.min(loss), high.max(loss)));
    let (low, high) = if low < high { (low, high) } else { (low.min(0.0), high.max(0.0) + 1.0) };
    let last = steps.last().map_or(1, |s| s.step).max(2) as f64;
    let x = |step: usize| LEFT + (WIDTH - LEFT - RIGHT) * (step as f64 - 1.0) / (last - 1.0);
    let y = |loss: f64| TOP + (HEIGHT - TOP - BOTTOM) * (high - loss) / (high - low);
    let line = |points: &mut dyn Iterator<Item = (usize, f64)>| {
        points.map(|(step, loss)| format!("{:.1},{:.1}", x(step), y(loss))).collect::<Vec<_>>().join(" ")
    };
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"12\" role=\"img\" aria-label=\"training loss by step\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n"
    );
    for i in 0..=4 {
        let loss = low + (high - low) * f64::from(i) / 4.0;
        let at = y(loss);
        let _ = writeln!(
            svg,
            "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#ddd\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{loss:.2}</text>",
            WIDTH - RIGHT,
            LEFT - 6.0,
            at + 4.0
        );
    }
    for i in 0..=4 {
        let step = 1 + ((last - 1.0) * f64::from(i) / 4.0) as usize;
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{step}</text>",
            x(step),
            HEIGHT - BOTTOM + 18.0
        );
    }
    let _ = writeln!(
        svg,
        "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">step</text>\
         <text x=\"{LEFT}\" y=\"13\">loss, nats per token</text>",
        (LEFT + WIDTH - RIGHT) / 2.0,
        HEIGHT - 8.0
    );
    let all = line(&mut steps.iter().map(|s| (s.step, s.loss)));
    let _ = writeln!(svg, "<polyline points=\"{all}\" fill=\"none\" stroke=\"#1f77b4\" stroke-opacity=\"0.25\"/>");
    let width = (steps.len() / 50).max(1);
    let mean = steps.windows(width).map(|w| (w[width - 1].step, w.iter().map(|s| s.loss).sum::<f64>() / width as f64));
    let mean = line(&mut { mean });
    let _ = writeln!(svg, "<polyline points=\"{mean}\" fill=\"none\" stroke=\"#1f77b4\" stroke-width=\"2\"/>");
    let held_out = line(&mut steps.iter().filter_map(|s| Some((s.step, s.held_out?))));
    if !held_out.is_empty() {
        let _ = writeln!(
            svg,
            "<polyline points=\"{held_out}\" fill=\"none\" stroke=\"#d62728\" stroke-width=\"2\"/>\
             <text x=\"{}\" y=\"13\" text-anchor=\"end\" fill=\"#d62728\">on held-out text</text>",
            WIDTH - RIGHT
        );
    }
    svg.push_str("</svg>\n");
    svg
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_step_is_a_point() {
        let step = |step: usize| Step {
            step,
            loss: 7.0 / step as f64,
            learning_rate: 0.0,
            grad_norm: 0.0,
            tokens_per_second: 0.0,
            held_out: step.is_multiple_of(50).then_some(9.0),
        };
        let svg = loss(&(1..=100).map(step).collect::<Vec<_>>());
        let points: Vec<usize> =
            svg.split("points=\"").skip(1).map(|p| p.split('"').next().unwrap().split(' ').count()).collect();
        assert_eq!(points, [100, 99, 2]);
        // The axis includes the held-out loss, which is above that of every step.
        assert!(svg.contains(">9.00</text>"), "{svg}");
        assert!(!svg.contains("NaN"));
        assert!(!loss(&[]).contains("NaN") && !loss(&[step(1)]).contains("NaN"));
    }
}
