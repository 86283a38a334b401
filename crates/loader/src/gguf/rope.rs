//! Rotary metadata as the `rope_parameters` of a config.json.
//!
//! The meaning is llama.cpp's (`llama-model.cpp`, `llama-context.cpp`), the spelling transformers': a factor without a
//! type is linear; `attn_factor` multiplies whatever attention factor the type has; the `yarn_*` keys are what
//! llama.cpp's converter made of a config's. `rope_freqs.weight` holds what Llama 3's scaling comes to, one divisor per
//! frequency. From the divisors the scaling itself is recovered where they allow it, since they forget the context that
//! the model was trained for, from which any other scaling has to start.

use super::{dims::Dims, meta::Meta};
use crate::error::Result;
use serde_json::{Map, Value as Json, json};
use std::f64::consts::TAU;

/// Tensors that hold rotary factors: divisors of the frequencies, and LongRoPE's two lists.
pub(crate) const TENSORS: [&str; 3] = ["rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"];

/// Rotary factors that are stored as tensors.
#[derive(Debug, Default)]
pub(crate) struct RopeTensors {
    pub(crate) freqs: Option<Vec<f32>>,
    pub(crate) long: Option<Vec<f32>>,
    pub(crate) short: Option<Vec<f32>>,
}

/// What the metadata says about scaling.
struct Scaling {
    kind: String,
    factor: f64,
    attention: f64,
    original: Option<u64>,
}

/// The rotary encoding of heads of `width`, of which `rotary` dimensions turn; `theta` is the base if none is given.
pub(crate) fn parameters(
    meta: &Meta,
    dims: &Dims,
    (rotary, width): (u64, u64),
    theta: f64,
    tensors: &RopeTensors,
) -> Result<Map<String, Json>> {
    let theta = meta.f64("rope.freq_base")?.unwrap_or(theta);
    let scaling = scaling(meta, tensors)?;
    let mut out = match scaling.kind.as_str() {
        "longrope" => longrope(meta, dims, &scaling, tensors)?,
        "yarn" => yarn(meta, dims, &scaling, tensors)?,
        _ => linear(dims, &scaling, tensors, theta, rotary),
    };
    out.insert("rope_theta".into(), theta.into());
    if rotary < width {
        out.insert("partial_rotary_factor".into(), share(rotary, width).into());
    }
    Ok(out)
}

fn scaling(meta: &Meta, tensors: &RopeTensors) -> Result<Scaling> {
    let factor = meta.f64("rope.scaling.factor")?.or(meta.f64("rope.scale_linear")?);
    let lists = tensors.long.is_some() && tensors.short.is_some();
    let kind = match meta.str("rope.scaling.type")? {
        Some("none" | "linear") | None if lists => "longrope",
        Some(kind @ ("none" | "linear" | "yarn" | "longrope")) => kind,
        Some(other) => return Err(meta.error("rope.scaling.type", format!("{other:?} is not supported"))),
        None => "linear",
    };
    let positive = |key: &str, value: Option<f64>| match value {
        // llama.cpp takes 0 for absent.
        None | Some(0.0) => Ok(1.0),
        Some(x) if x > 0.0 => Ok(x),
        Some(x) => Err(meta.error(key, format!("{x} is not above 0"))),
    };
    let attention = positive("rope.scaling.attn_factor", meta.f64("rope.scaling.attn_factor")?)?;
    let factor = if kind == "none" { 1.0 } else { positive("rope.scaling.factor", factor)? };
    let original = meta.u64("rope.scaling.original_context_length")?.filter(|&n| n > 0);
    let mut kind = kind.to_string();
    // How far YaRN keeps the fast frequencies: 0 is linear, a negative number is "not given".
    match meta.f64("rope.scaling.yarn_ext_factor")?.filter(|&x| x >= 0.0) {
        Some(0.0) if kind == "yarn" => kind = "linear".to_string(),
        Some(x) if kind == "yarn" && x != 1.0 => {
            return Err(meta.error("rope.scaling.yarn_ext_factor", format!("{x} is not supported, only 0 and 1")));
        }
        Some(x) if kind != "yarn" && x != 0.0 => {
            return Err(meta.error("rope.scaling.yarn_ext_factor", format!("{x} beside rope.scaling.type {kind:?}")));
        }
        _ => {}
    }
    Ok(Scaling { kind, factor, attention, original })
}

fn typed(kind: &str) -> Map<String, Json> {
    Map::from_iter([("rope_type".to_string(), kind.into())])
}

fn linear(dims: &Dims, s: &Scaling, tensors: &RopeTensors, theta: f64, rotary: u64) -> Map<String, Json> {
    let plain = s.factor == 1.0 && s.attention == 1.0;
    if let Some(freqs) = tensors.freqs.as_ref().filter(|freqs| freqs.iter().any(|&f| f != 1.0)) {
        if let (true, Some(llama3)) = (plain, llama3(freqs, theta, rotary as usize)) {
            return llama3;
        }
        let divisors: Vec<f64> = freqs.iter().map(|&f| f64::from(f) * s.factor).collect();
        return divided(dims, &divisors, s);
    }
    if s.attention != 1.0 {
        return divided(dims, &vec![s.factor; (rotary / 2) as usize], s);
    }
    let mut out = typed(if s.factor == 1.0 { "default" } else { "linear" });
    if s.factor != 1.0 {
        out.insert("factor".into(), s.factor.into());
    }
    out
}

/// Every frequency divided by its own number, whatever the length: LongRoPE with the same list twice.
fn divided(dims: &Dims, divisors: &[f64], s: &Scaling) -> Map<String, Json> {
    let mut out = typed("longrope");
    out.insert("short_factor".into(), json!(divisors));
    out.insert("long_factor".into(), json!(divisors));
    out.insert("attention_factor".into(), s.attention.into());
    out.insert("original_max_position_embeddings".into(), s.original.unwrap_or(dims.context).into());
    out
}

fn longrope(meta: &Meta, dims: &Dims, s: &Scaling, tensors: &RopeTensors) -> Result<Map<String, Json>> {
    let (Some(long), Some(short)) = (&tensors.long, &tensors.short) else {
        let reason = "is longrope, but the file has no rope_factors_long and rope_factors_short tensors";
        return Err(meta.error("rope.scaling.type", reason));
    };
    if tensors.freqs.is_some() {
        return Err(meta.error("rope.scaling.type", "is longrope, but the file has rope_freqs.weight too"));
    }
    let list = |factors: &[f32]| json!(factors.iter().map(|&f| f64::from(f) * s.factor).collect::<Vec<_>>());
    let mut out = typed("longrope");
    out.insert("long_factor".into(), list(long));
    out.insert("short_factor".into(), list(short));
    out.insert("attention_factor".into(), s.attention.into());
    out.insert("original_max_position_embeddings".into(), s.original.unwrap_or(dims.context).into());
    Ok(out)
}

fn yarn(meta: &Meta, dims: &Dims, s: &Scaling, tensors: &RopeTensors) -> Result<Map<String, Json>> {
    if tensors.freqs.is_some() {
        return Err(meta.error("rope.scaling.type", "is yarn, but the file has rope_freqs.weight too"));
    }
    let mut out = typed("yarn");
    out.insert("factor".into(), s.factor.into());
    out.insert("original_max_position_embeddings".into(), s.original.unwrap_or(dims.context).into());
    for key in ["beta_fast", "beta_slow"] {
        if let Some(v) = meta.f64(&format!("rope.scaling.yarn_{key}"))? {
            out.insert(key.into(), v.into());
        }
    }
    let given = meta.f64("rope.scaling.yarn_attn_factor")?;
    // For DeepSeek the converter writes a tenth of mscale_all_dim, and llama.cpp takes mscale for equal to it.
    let deepseek = dims.latent;
    let log = meta.f64("rope.scaling.yarn_log_multiplier")?.filter(|&m| m != 0.0);
    let all = log.map(|m| if deepseek { (m * 1e6 / 0.1).round() / 1e6 } else { m });
    let mscale = all.map(|all| if deepseek { all } else { 1.0 });
    if let (Some(all), Some(mscale)) = (all, mscale) {
        out.insert("mscale".into(), mscale.into());
        out.insert("mscale_all_dim".into(), all.into());
    }
    let growth = |m: f64| if s.factor <= 1.0 { 1.0 } else { 0.1 * m * s.factor.ln() + 1.0 };
    if given.is_some() || s.attention != 1.0 {
        let own = given.unwrap_or_else(|| match (mscale, all) {
            (Some(mscale), Some(all)) => growth(mscale) / growth(all),
            _ => growth(1.0),
        });
        out.insert("attention_factor".into(), (own * s.attention).into());
    }
    Ok(out)
}

/// `rotary / width` such that `width` times it, truncated, is `rotary` again.
fn share(rotary: u64, width: u64) -> f64 {
    let share = rotary as f64 / width as f64;
    if (width as f64 * share) as u64 == rotary { share } else { share.next_up() }
}

/// Llama 3's scaling, if `divisors` are what it makes of `theta` over `rotary` dimensions with a whole trained context:
/// its `low_freq_factor` is 1 in every model there is, and its `high_freq_factor` 4 unless the divisors say otherwise.
fn llama3(divisors: &[f32], theta: f64, rotary: usize) -> Option<Map<String, Json>> {
    let factor = divisors.last().map(|&f| f64::from(f))?;
    let wavelengths: Vec<f64> = (0..rotary / 2).map(|i| TAU * theta.powf(2.0 * i as f64 / rotary as f64)).collect();
    if factor <= 1.0 || wavelengths.len() != divisors.len() {
        return None;
    }
    // How much of the plain frequency a blended one keeps: t = (original / wavelength - low) / (high - low).
    let kept = |d: f64| (factor / d - 1.0) / (factor - 1.0);
    let blended = divisors.iter().map(|&d| f64::from(d)).zip(&wavelengths);
    let blended: Vec<(f64, f64)> =
        blended.filter(|(d, _)| *d > 1.0 + 1e-4 && *d < factor * (1.0 - 1e-4)).map(|(d, w)| (kept(d), *w)).collect();
    let usual = blended.first().map(|(t, w)| (4.0, w * (3.0 * t + 1.0)));
    // Two points give the slope original / (high - low) and with low = 1 both unknowns.
    let fitted = blended.first().zip(blended.last()).filter(|(a, b)| a.1 != b.1).map(|(a, b)| {
        let slope = (a.0 - b.0) / (1.0 / a.1 - 1.0 / b.1);
        let high = 1.0 + 1.0 / (slope / a.1 - a.0);
        (high, slope * (high - 1.0))
    });
    for (high, original) in usual.into_iter().chain(fitted) {
        let (high, original) = ((high * 1e3).round() / 1e3, original.round());
        if !(high > 1.0 && (1.0..1e9).contains(&original)) {
            continue;
        }
        let divisor = |w: f64| {
            let t = ((original / w - 1.0) / (high - 1.0)).clamp(0.0, 1.0);
            1.0 / ((1.0 - t) / factor + t)
        };
        if divisors.iter().zip(&wavelengths).all(|(&d, &w)| (divisor(w) / f64::from(d) - 1.0).abs() < 1e-4) {
            let mut out = typed("llama3");
            out.insert("factor".into(), factor.into());
            out.insert("low_freq_factor".into(), 1.0.into());
            out.insert("high_freq_factor".into(), high.into());
            out.insert("original_max_position_embeddings".into(), (original as u64).into());
            return Some(out);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn divisors(theta: f64, rotary: usize, [factor, low, high, original]: [f64; 4]) -> Vec<f32> {
        let one = |i: usize| {
            let w = TAU * theta.powf(2.0 * i as f64 / rotary as f64);
            let t = ((original / w - low) / (high - low)).clamp(0.0, 1.0);
            (1.0 / ((1.0 - t) / factor + t)) as f32
        };
        (0..rotary / 2).map(one).collect()
    }

    #[test]
    fn llama3_is_recovered_with_the_context_it_was_trained_for() {
        for (theta, rotary, set) in [
            (5e5, 128, [8.0, 1.0, 4.0, 8192.0]),
            (5e5, 64, [32.0, 1.0, 4.0, 8192.0]),
            (1e6, 128, [16.0, 1.0, 8.0, 4096.0]),
            (500.0, 8, [4.0, 1.0, 4.0, 16.0]),
        ] {
            let found = llama3(&divisors(theta, rotary, set), theta, rotary).unwrap();
            let get = |key: &str| found[key].as_f64().unwrap();
            let keys = ["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"];
            assert_eq!(keys.map(get), set, "{found:?}");
        }
        assert!(llama3(&[1.0, 3.0, 2.0, 8.0], 1e4, 8).is_none());
        assert!(llama3(&[1.0; 4], 1e4, 8).is_none());
    }

    #[test]
    fn a_rotary_share_gives_its_width_back() {
        for width in 1..512u64 {
            for rotary in 1..=width {
                assert_eq!((width as f64 * share(rotary, width)) as u64, rotary, "{rotary} of {width}");
            }
        }
    }
}
