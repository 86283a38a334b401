//! Position encodings of configs against docs/conformance.json, which transformers computed
//! (scripts/reference/make_conformance.py).

use attn_core::RopeConfig;
use attn_core::position::{PositionConfig, Temperature};
use attn_models::config::UnknownKeys;
use attn_models::families;
use attn_models::spec::{AttentionSpec, LayerSpec, ModelSpec};
use serde_json::Value;

fn conformance() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/conformance.json");
    serde_json::from_str(&std::fs::read_to_string(path).expect(path)).expect("the file is JSON")
}

fn spec(config: &Value, name: &str) -> ModelSpec {
    let read = families::spec_with(config, UnknownKeys::Refuse);
    read.unwrap_or_else(|error| panic!("{name}: {config}: {error}")).0
}

/// The rotation of the first layer of a type that has one; without a type, of any type.
fn encoding<'a>(spec: &'a ModelSpec, layer_type: Option<&str>) -> Option<&'a RopeConfig> {
    let windowed =
        |layer: &LayerSpec| matches!(&layer.attention, AttentionSpec::MultiHead(a) if a.mask.window.is_some());
    let wanted = |layer: &&LayerSpec| layer_type.is_none_or(|kind| windowed(layer) == (kind == "sliding_attention"));
    spec.stack.layers.iter().filter(wanted).find_map(|layer| layer.attention.position().rope())
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().expect("a list").iter().map(|x| x.as_f64().expect("a number")).collect()
}

/// The first number whose relative difference is above `tolerance`.
fn off(got: &[f64], wanted: &[f64], tolerance: f64) -> Option<String> {
    if got.len() != wanted.len() {
        return Some(format!("{} numbers, not {}", got.len(), wanted.len()));
    }
    let far = |(_, (a, b)): &(usize, (&f64, &f64))| (*a - *b).abs() > tolerance * b.abs();
    let found = got.iter().zip(wanted).enumerate().find(far)?;
    Some(format!("number {} is {}, not {}", found.0, found.1.0, found.1.1))
}

fn check_rope(spec: &ModelSpec, case: &Value, tolerance: f64) -> Option<String> {
    let Some(rope) = encoding(spec, case["layer_type"].as_str()) else { return Some("nothing turns".to_string()) };
    case["rope"].as_array().into_iter().flatten().find_map(|value| {
        let length = value["length"].as_u64().expect("a length") as usize;
        let found = rope.frequencies(length);
        let factor = value["attention_factor"].as_f64().expect("a number");
        let wrong = off(&found.inv_freq, &numbers(&value["inv_freq"]), tolerance)
            .or_else(|| off(&[found.attention_factor], &[factor], 1e-12).map(|why| format!("attention factor: {why}")));
        wrong.map(|why| format!("at a length of {length}: {why}"))
    })
}

fn check_layers(spec: &ModelSpec, case: &Value, tolerance: f64) -> Option<String> {
    let positions = numbers(&case["positions"]);
    case["layers"].as_array().into_iter().flatten().find_map(|value| {
        let index = value["layer"].as_u64().expect("a layer") as usize;
        let (temperature, scale) = match &spec.stack.layers[index].attention {
            AttentionSpec::MultiHead(a) => (a.temperature.or(of_nope(&a.position)), a.scale),
            AttentionSpec::Latent(a) => (None, a.scale(&a.position)),
        };
        let at = |position: &f64| temperature.map_or(1.0, |temperature| temperature.at(*position as usize));
        let factors: Vec<f64> = positions.iter().map(at).collect();
        let wanted = value["scale"].as_f64().expect("a number");
        let wrong = off(&factors, &numbers(&value["factors"]), tolerance)
            .or_else(|| off(&[scale], &[wanted], 1e-12).map(|why| format!("scale: {why}")));
        wrong.map(|why| format!("layer {index}: {why}"))
    })
}

fn of_nope(position: &PositionConfig) -> Option<Temperature> {
    match position {
        PositionConfig::Nope(nope) => nope.temperature,
        _ => None,
    }
}

/// transformers' Llama class rotates whole heads under the rope type default, whatever `partial_rotary_factor` says,
/// and honours it under every other type. Here, as in vLLM and llama.cpp, it is honoured under every type.
const SHARE_OF_LLAMA: &str = "Llama, default, share ";

/// Whether a case is one of [`SHARE_OF_LLAMA`] and the model rotates only that share of a head.
fn turns_the_share(spec: &ModelSpec, case: &Value) -> bool {
    let Some(share) = case["name"].as_str().and_then(|name| name.strip_prefix(SHARE_OF_LLAMA)) else { return false };
    let whole = numbers(&case["rope"][0]["inv_freq"]).len() as f64;
    let found = encoding(spec, None).map_or(0, |rope| rope.frequencies(1).inv_freq.len());
    found == (whole * share.parse::<f64>().expect("a share")) as usize
}

#[test]
fn every_config_means_what_it_means_to_transformers() {
    let file = conformance();
    let tolerance = file["tolerance"].as_f64().expect("a tolerance");
    assert!(tolerance < 1e-5);
    let cases = file["cases"].as_array().expect("cases");
    let mut wrong = vec![];
    for case in cases {
        let name = case["name"].as_str().expect("a name");
        for config in case["configs"].as_array().expect("configs") {
            let spec = spec(config, name);
            if turns_the_share(&spec, case) {
                continue;
            }
            let rope = case.get("rope").and_then(|_| check_rope(&spec, case, tolerance));
            let layers = case.get("layers").and_then(|_| check_layers(&spec, case, tolerance));
            wrong.extend(rope.or(layers).map(|why| format!("{name}: {config}: {why}")));
        }
    }
    assert!(wrong.is_empty(), "{} are wrong:\n{}", wrong.len(), wrong.join("\n"));
    assert!(cases.len() >= 150, "only {} cases", cases.len());
}

/// A case that is off by a few units in the fifth digit, or a factor in the twelfth, is found.
#[test]
fn what_differs_is_found() {
    let file = conformance();
    let cases = file["cases"].as_array().expect("cases");
    let yarn = cases.iter().find(|case| case["name"] == "yarn, factor 4.0").expect("the case");
    let spec = spec(&yarn["configs"][0], "yarn");
    assert_eq!(check_rope(&spec, yarn, 4e-6), None);
    for (key, by) in [("inv_freq", 1e-5), ("attention_factor", 1e-11)] {
        let mut other = yarn.clone();
        let slot = &mut other["rope"][0][key];
        let slot = if slot.is_array() { &mut slot[7] } else { slot };
        *slot = (slot.as_f64().expect("a number") * (1.0 + by)).into();
        assert!(check_rope(&spec, &other, 4e-6).is_some(), "{key}");
    }
}
