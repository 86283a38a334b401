//! The distances at which an encoding lets a query see its keys.
//!
//! With a rotary encoding, a head sees a distance as an angle. Here the angle is measured on the encoding itself: a unit vector
//! is placed as a query and as keys through the encoding's own hooks, under a rotation so slow that no distance reaches a full
//! turn. So the answer holds for every method that places near and far keys differently, whatever its parts and copies are.

use attn_core::position::rope::scaling::Linear;
use attn_core::position::{Context, ExtendConfig, ExtendedConfig, Part, RopeConfig};
use attn_core::{Mask, Positions};
use candle_core::{Device, Result, Tensor};

/// Radians per token of the rotation on which distances are measured: 2^20 tokens are a sixth of a full turn.
const RADIANS: f64 = 1e-6;

/// The distance at which the query at position `query` sees each key from position 0 to its own, in tokens under plain RoPE;
/// `None` for a key that it does not see. Without a `method` that is the distance itself.
///
/// # Errors
/// Numbers of the method that are impossible.
pub fn seen_distances(method: Option<ExtendConfig>, query: usize) -> Result<Vec<Option<f64>>> {
    let rope = RopeConfig { scaling: Linear { factor: 1.0 / RADIANS }.into(), ..RopeConfig::new(2, 1e4) };
    let encoding = ExtendedConfig { rope, method, log_n: None }.build()?;
    let everything = [Part::new(Mask::causal())];
    let parts = if encoding.parts().is_empty() { &everything[..] } else { encoding.parts() };
    let units = Tensor::new(&[1f64, 0.0], &Device::Cpu)?.expand((1, 1, query + 1, 2))?.contiguous()?;
    let (at, all) = (Positions::new(query..query + 1), Positions::new(0..query + 1));
    let mut seen = vec![None; query + 1];
    for (number, part) in parts.iter().enumerate() {
        let of_query = angles(&encoding.queries(&units.narrow(2, 0, 1)?, &Context::new(&at).with_part(number))?)?[0];
        let of_keys = angles(&encoding.keys(&units, &Context::new(&all).with_copy(part.copy))?)?;
        for key in part.region.visible(0, query, 0..query + 1) {
            seen[key] = Some((of_query - of_keys[key]) / RADIANS);
        }
    }
    Ok(seen)
}

/// The angles of vectors `(1, 1, t, 2)`.
fn angles(vectors: &Tensor) -> Result<Vec<f64>> {
    let vectors = vectors.squeeze(0)?.squeeze(0)?.to_vec2::<f64>()?;
    Ok(vectors.iter().map(|v| v[1].atan2(v[0])).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &str, numbers: &[(&str, f64)], query: usize) -> Vec<Option<f64>> {
        let mut method = ExtendConfig::new(name, 256, 1024).unwrap();
        numbers.iter().for_each(|(name, value)| method.set(name, *value).unwrap());
        seen_distances(Some(method), query).unwrap()
    }

    fn assert_seen(seen: &[Option<f64>], key: usize, expected: Option<f64>) {
        match (seen[key], expected) {
            (Some(a), Some(b)) => assert!((a - b).abs() < 1e-6, "key {key}: {a} instead of {b}"),
            (a, b) => assert_eq!(a, b, "key {key}"),
        }
    }

    #[test]
    fn without_a_method_distances_are_themselves() {
        let seen = seen_distances(None, 700).unwrap();
        assert_eq!(seen.len(), 701);
        (0..=700).for_each(|key| assert_seen(&seen, key, Some((700 - key) as f64)));
    }

    #[test]
    fn each_method_places_near_and_far_keys_by_its_formula() {
        let rerope = of("rerope", &[("window", 128.0)], 500);
        assert_seen(&rerope, 400, Some(100.0));
        assert_seen(&rerope, 3, Some(128.0));
        // Query 500 in groups of 4 with a window of 128: 125 + 128 - 32.
        let groups = of("self-extend", &[("group", 4.0), ("window", 128.0)], 500);
        assert_seen(&groups, 373, Some(127.0));
        assert_seen(&groups, 372, Some(221.0 - 93.0));
        assert_seen(&groups, 0, Some(221.0));
        let leaky = of("leaky-rerope", &[("window", 100.0), ("factor", 4.0)], 500);
        assert_seen(&leaky, 0, Some(200.0));
        let shifted = of("string", &[("shift", 200.0), ("local", 32.0)], 500);
        assert_seen(&shifted, 400, Some(100.0));
        assert_seen(&shifted, 0, Some(500.0 - 200.0 + 32.0));
        let dropped = of("streaming", &[("sinks", 4.0), ("window", 64.0)], 500);
        assert_seen(&dropped, 437, Some(63.0));
        assert_seen(&dropped, 436, None);
        assert_seen(&dropped, 3, Some(64.0));
    }

    #[test]
    fn distances_stay_within_the_trained_context() {
        // STRING shifts far keys by a constant, which is not enough for four times the context.
        for name in ExtendConfig::NAMES.iter().filter(|name| **name != "string") {
            let seen = of(name, &[], 1023);
            assert!(seen.iter().flatten().all(|d| *d < 256.0 + 1e-6), "{name}");
            assert_seen(&seen, 1023, Some(0.0));
        }
    }
}
