use super::*;
use crate::position::Resolution;
use crate::position::rope::scaling::{Dynamic, Linear, LongRope, Ntk};
use serde_json::json;

pub(crate) fn golden(name: &str) -> Value {
    let path = format!("{}/testdata/{name}", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(&path).expect(&path)).expect("golden data is JSON")
}

fn read(config: Value, head_dim: usize) -> Result<Option<RopeConfig>> {
    RopeConfig::from_hf(&config, None, &RopeDefaults::new(head_dim))
}

fn parsed(config: Value, head_dim: usize) -> RopeConfig {
    read(config, head_dim).expect("a valid config").expect("a rotary encoding")
}

fn refused(config: Value) -> String {
    // Behind the first line candle may add a backtrace.
    let message = read(config, 8).expect_err("should be refused").to_string();
    message.lines().next().unwrap_or_default().to_string()
}

/// A config with one rope dictionary over 4 pairs.
fn rope(dict: Value) -> Value {
    json!({"max_position_embeddings": 64, "rope_theta": 1e4, "rope_scaling": dict})
}

#[test]
fn frequencies_are_those_of_transformers() {
    for case in golden("rope.json").as_array().expect("a list") {
        let head_dim = case["head_dim"].as_u64().expect("head_dim") as usize;
        let len = case["seq_len"].as_u64().unwrap_or(1) as usize;
        let config = json!({
            "max_position_embeddings": case["max_position_embeddings"], "rope_parameters": case["rope_parameters"],
        });
        let got = parsed(config, head_dim).frequencies(len);
        let expected: Vec<f64> = case["inv_freq"].as_array().expect("list").iter().filter_map(Value::as_f64).collect();
        assert_eq!(got.inv_freq.len(), expected.len(), "{}", case["name"]);
        for (i, (got, want)) in got.inv_freq.iter().zip(&expected).enumerate() {
            assert!((got - want).abs() <= 1e-6 * want.abs(), "{} [{i}]: {got} instead of {want}", case["name"]);
        }
        let want = case["attention_factor"].as_f64().expect("attention_factor");
        assert!((got.attention_factor - want).abs() <= 1e-12, "{}: {}", case["name"], got.attention_factor);
    }
}

#[test]
fn published_values() {
    for (factor, expected) in [(4.0, 1.138629436111989), (16.0, 1.2772588722239782), (32.0, 1.3465735902799727)] {
        let config = parsed(rope(json!({"type": "yarn", "factor": factor})), 128);
        assert!((config.frequencies(1).attention_factor - expected).abs() < 1e-12);
    }
    let llama31 = parsed(
        json!({"max_position_embeddings": 131072, "rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3",
            "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}}),
        128,
    );
    let plain = RopeConfig { scaling: RopeScaling::default(), ..llama31.clone() }.frequencies(1).inv_freq;
    let ratios = plain.iter().zip(llama31.frequencies(1).inv_freq).map(|(a, b)| a / b).collect::<Vec<_>>();
    let near = |x: f64| ratios.iter().filter(|r| (*r - x).abs() < 1e-9).count();
    assert_eq!((near(1.0), ratios.len() - near(1.0) - near(8.0), near(8.0)), (29, 6, 29));
    let ntk = RopeConfig { scaling: Ntk { factor: 2.0 }.into(), ..RopeConfig::new(128, 1e4) };
    let theta = ntk.frequencies(1).inv_freq[1].powf(-64.0);
    assert!((theta - 20221.26).abs() < 0.01, "{theta}");
    // By the code of the repository rerope, in f64: at its own width, factor and exponent, and at the article's exponent.
    let mixed = |head_dim, dict: Value| parsed(rope(dict), head_dim).frequencies(1).inv_freq;
    let near = |got: f64, expected: f64| assert!((got / expected - 1.0).abs() < 1e-12, "{got} is not {expected}");
    let repository = mixed(128, json!({"rope_type": "ntk-mixed", "factor": 12.0, "exponent": 0.75}));
    for (pair, expected) in
        [(0, 0.895996836757925), (1, 0.7199285125222531), (31, 0.002635208556092462), (63, 9.623183205745485e-06)]
    {
        near(repository[pair], expected);
    }
    let article = mixed(8, json!({"rope_type": "ntk-mixed", "factor": 4.0}));
    let expected = [0.5582965649524322, 0.04070168552750019, 0.003140633715600225, 0.00025];
    article.into_iter().zip(expected).for_each(|(got, expected)| near(got, expected));
}

/// The golden checkpoints' configs, with the frequencies that transformers' formula gives for them.
#[test]
fn golden_checkpoints_are_read() {
    let config = |name: &str| golden(&format!("models/{name}/config.json"));
    let lists = ("short_factor", vec![1.0, 1.1, 1.2, 1.3], vec![1.5, 2.0, 3.0, 4.0]);
    for (name, factor) in [("llama-longrope", Some(4.0)), ("phi3-longrope", None)] {
        let c = parsed(config(name), 8);
        let expected = RopeScaling::LongRope(LongRope {
            short_factor: lists.1.clone(),
            long_factor: lists.2.clone(),
            original_max_position_embeddings: 16,
            factor,
            attention_factor: None,
            mscale: None,
        });
        assert_eq!(c.scaling, expected);
        assert!((c.frequencies(1).attention_factor - (1.5f64).sqrt()).abs() < 1e-12);
        assert_eq!((c.scaling.resolve(16), c.scaling.resolve(17)), (Resolution::Short, Resolution::Long));
    }
    assert_eq!(parsed(config("llama-v4-config"), 8).theta, 50000.0);
    assert_eq!(parsed(config("llama-linear"), 8).scaling, RopeScaling::Linear(Linear { factor: 4.0 }));
    assert_eq!(
        parsed(config("llama-dynamic"), 8).scaling,
        RopeScaling::Dynamic(Dynamic { factor: 2.0, original_max_position_embeddings: 32 })
    );
    assert_eq!(parsed(config("qwen2-yarn"), 8).scaling.original_max_position_embeddings(), Some(8));
    for name in ["phi", "stablelm", "gpt-neox", "gptj-interleaved"] {
        assert_eq!(parsed(config(name), 8).rotary_dim, 4, "{name}");
    }
    let defaults = RopeDefaults::new(16);
    let gemma3 = |kind| RopeConfig::from_hf(&config("gemma3"), kind, &defaults);
    let full = gemma3(Some("full_attention")).expect("valid").expect("rotary");
    assert_eq!((full.theta, full.scaling), (1e6, RopeScaling::Linear(Linear { factor: 8.0 })));
    let sliding = gemma3(Some("sliding_attention")).expect("valid").expect("rotary");
    assert_eq!((sliding.theta, sliding.scaling), (1e4, RopeScaling::default()));
    assert!(gemma3(None).expect_err("ambiguous").to_string().contains("full_attention, sliding_attention"));
    assert!(gemma3(Some("chunked")).is_err());
}

#[test]
fn null_entries_and_old_spellings() {
    let nested = json!({"max_position_embeddings": 64, "rope_parameters": {"full_attention": null,
        "sliding_attention": {"rope_type": "default", "rope_theta": 7e3}, "rope_theta": 1e4}});
    let layer = |kind| RopeConfig::from_hf(&nested, Some(kind), &RopeDefaults::new(8)).expect("valid");
    assert_eq!(layer("full_attention"), None);
    assert_eq!(layer("sliding_attention").map(|c| c.theta), Some(7e3));
    // Nothing said at all: the family's default.
    assert_eq!(parsed(json!({"max_position_embeddings": 64}), 8).theta, 1e4);
    assert_eq!(parsed(rope(json!({})), 8).scaling, RopeScaling::default());
    // Other names for the same thing.
    let mrope = parsed(rope(json!({"type": "mrope", "mrope_section": [1, 1, 2]})), 8);
    assert_eq!(mrope.scaling, RopeScaling::default());
    let su = json!({"type": "su", "short_factor": [1, 1, 1, 1], "long_factor": [1, 2, 3, 4]});
    assert_eq!(parsed(rope(su), 8).scaling.name(), "longrope");
    let both = json!({"type": "yarn", "rope_type": "yarn", "factor": 2.0, "finetuned": true, "mscale": null});
    assert_eq!(parsed(rope(both), 8).scaling.name(), "yarn");
    assert_eq!(parsed(json!({"rotary_pct": 0.25, "rotary_emb_base": 500}), 16).rotary_dim, 4);
    assert_eq!(parsed(json!({"rotary_pct": 0.25, "rotary_emb_base": 500}), 16).theta, 500.0);
    assert_eq!(parsed(json!({"rope_pct": 0.5}), 16).rotary_dim, 8);
}

#[test]
fn the_original_context_falls_back_as_in_transformers() {
    let yarn = |top: Value, inside: Value| {
        let mut dict = json!({"type": "yarn", "factor": 4.0});
        if !inside.is_null() {
            dict["original_max_position_embeddings"] = inside;
        }
        let config =
            json!({"max_position_embeddings": 64, "rope_scaling": dict, "original_max_position_embeddings": top});
        parsed(config, 8).original_context()
    };
    assert_eq!(yarn(Value::Null, Value::Null), 64);
    assert_eq!(yarn(Value::Null, json!(16)), 16);
    assert_eq!(yarn(json!(8), json!(16)), 8);
    // A factor of null is the ratio of the contexts, an absent one an error.
    let null = json!({"type": "yarn", "factor": null, "original_max_position_embeddings": 16});
    assert_eq!(parsed(rope(null), 8).scaling.factor(), Some(4.0));
    assert!(refused(rope(json!({"type": "yarn"}))).contains("factor is missing"));
}

/// What transformers passes over with a warning passes here too, with a line to warn with.
#[test]
fn what_transformers_ignores_is_ignored_and_said() {
    let reading = |dict: Value| RopeConfig::read_hf(&rope(dict), None, &RopeDefaults::new(8)).expect("valid");
    let cases = [
        (json!({"type": "yarn", "factor": 2.0, "attn_factor": 0.9}), "attn_factor", "yarn"),
        (json!({"type": "default", "factor": 2}), "factor", "default"),
        (json!({"type": "linear", "factor": 2, "beta_fast": 32}), "beta_fast", "linear"),
        (json!({"type": "dynamic", "factor": 2, "original_max_position_embeddings": 8}), "original_max", "dynamic"),
    ];
    for (dict, key, kind) in cases {
        let reading = reading(dict);
        assert_eq!((reading.unknown.len(), reading.ignored.len()), (0, 1), "{key}");
        assert!(reading.ignored[0].contains(key) && reading.ignored[0].contains(kind), "{:?}", reading.ignored);
        assert_eq!(reading.config.expect("rotary").scaling.name(), kind);
    }
    let dynamic = reading(json!({"type": "dynamic", "factor": 2, "original_max_position_embeddings": 8})).config;
    assert_eq!(dynamic.expect("rotary").original_context(), 64, "dynamic starts from the declared context");
    let unknown = reading(json!({"type": "dynamic", "factor": 2, "alpha": 1000}));
    assert!(unknown.ignored.is_empty() && unknown.unknown[0].contains("alpha"), "{unknown:?}");
    assert_eq!(unknown.config.expect("rotary").scaling.factor(), Some(2.0));
}

/// Of two spellings the one that transformers reads counts.
#[test]
fn rope_type_wins_over_type_and_rope_scaling_over_rope_parameters() {
    let both = rope(json!({"type": "linear", "rope_type": "yarn", "factor": 2}));
    assert_eq!(parsed(both, 8).scaling.name(), "yarn");
    let linear = json!({"type": "linear", "factor": 2});
    let config =
        |old: Value| json!({"rope_scaling": old, "rope_parameters": {"rope_type": "default", "rope_theta": 7.0}});
    let read = |old: Value| (parsed(config(old.clone()), 8).scaling.name(), parsed(config(old), 8).theta);
    assert_eq!(read(linear), ("linear", 1e4));
    assert_eq!((read(json!(null)), read(json!({}))), (("default", 7.0), ("default", 7.0)));
}

/// A value of null is not an absent one where transformers tells them apart.
#[test]
fn null_zero_and_absent_boundaries() {
    let ramp = |dict: Value| {
        let mut all = json!({"type": "yarn", "factor": 4.0});
        all.as_object_mut().expect("an object").extend(dict.as_object().cloned().unwrap_or_default());
        match parsed(rope(all), 8).scaling {
            RopeScaling::Yarn(yarn) => (yarn.ramp.beta_fast, yarn.ramp.beta_slow, yarn.ramp.truncate),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(ramp(json!({})), (32.0, 1.0, true));
    assert_eq!(ramp(json!({"beta_fast": null, "beta_slow": 0, "truncate": null})), (32.0, 1.0, false));
    assert_eq!(ramp(json!({"beta_fast": 8, "truncate": true})), (8.0, 1.0, true));
}

/// Llama 4 Scout: with equal boundaries every frequency is kept or divided.
#[test]
fn llama3_with_equal_boundaries_blends_nothing() {
    let dict = json!({"type": "llama3", "factor": 16.0, "low_freq_factor": 1.0, "high_freq_factor": 1.0,
        "original_max_position_embeddings": 8192});
    let scaled = parsed(json!({"rope_theta": 5e5, "max_position_embeddings": 10_485_760, "rope_scaling": dict}), 128);
    let plain = RopeConfig::new(128, 5e5).frequencies(1).inv_freq;
    let near = |a: f64, b: f64| (a / b - 1.0).abs() < 1e-12;
    let scaled = scaled.frequencies(1).inv_freq;
    let kept = plain.iter().zip(&scaled).filter(|(a, b)| near(**a, **b)).count();
    let divided = plain.iter().zip(&scaled).filter(|(a, b)| near(**a, 16.0 * **b)).count();
    // 8192 positions are a full turn of all pairs up to number 34.
    assert_eq!((kept, divided), (35, 29));
}

#[test]
fn what_is_not_understood_is_refused_by_name() {
    let lists = |short: Value| json!({"type": "longrope", "short_factor": short, "long_factor": [1, 1, 1, 1]});
    let llama3 = |low: f64| json!({"type": "llama3", "factor": 8, "low_freq_factor": low, "high_freq_factor": 4});
    let cases = [
        (rope(json!({"type": "hyper", "factor": 2})), "\"hyper\""),
        (rope(json!({"type": "dynamic", "factor": 2, "alpha": 1000})), "alpha"),
        (rope(json!({"type": "linear"})), "factor is missing"),
        (rope(json!({"type": "linear", "factor": "2"})), "factor must be a number"),
        (rope(json!({"type": "linear", "factor": 0})), "factor must be a positive number"),
        (rope(json!({"type": "linear", "factor": -1.5})), "factor must be a positive number"),
        (rope(json!({"type": 3})), "type must be a string"),
        (rope(json!("linear")), "expected an object"),
        (rope(json!({"type": "yarn", "factor": 2, "truncate": 1})), "truncate"),
        (rope(json!({"type": "yarn", "factor": 2, "beta_fast": 1, "beta_slow": 2})), "beta_fast"),
        (rope(json!({"type": "yarn", "factor": 2, "attention_factor": 0})), "attention_factor"),
        (rope(json!({"type": "yarn", "factor": 2, "llama_4_scaling_beta": 0.1})), "llama_4_scaling_beta"),
        (rope(json!({"type": "yarn", "factor": 2, "original_max_position_embeddings": 1.5})), "whole number"),
        (rope(lists(json!([1, 1, 1]))), "short_factor has 3 entries, but 4 pairs"),
        (rope(lists(json!([1, 1, 1, 0]))), "short_factor must be a positive"),
        (rope(lists(json!([1, 1, 1, "x"]))), "short_factor must hold numbers"),
        (rope(lists(json!(2))), "short_factor must be a list"),
        (rope(llama3(4.5)), "high_freq_factor"),
        (json!({"rope_theta": 0}), "rope_theta"),
        (json!({"rope_theta": 1}), "rope_theta"),
        (json!({"rope_theta": "1e4"}), "rope_theta"),
        (json!({"partial_rotary_factor": 1.5}), "partial_rotary_factor"),
        (json!({"partial_rotary_factor": 0.5, "rotary_dim": 6}), "disagree"),
        (json!({"rotary_dim": 3}), "rotary_dim"),
        (json!({"rotary_dim": 10}), "rotary_dim"),
        (json!({"max_position_embeddings": 0}), "max_position_embeddings"),
        (json!([]), "expected an object"),
        (json!({"rope_parameters": {"full": {"rope_type": "default"}, "factor": 2}}), "factor"),
    ];
    for (config, named) in cases {
        let message = refused(config.clone());
        assert!(message.contains(named), "{config}\n  gave: {message}\n  should name: {named}");
    }
}
