use super::*;
use crate::position::RopeScaling;
use crate::position::rope::scaling::{LongRope, Proportional, Ramp, Yarn};

fn yarn_checkpoint() -> RopeConfig {
    let yarn = Yarn {
        ramp: Ramp { beta_fast: 24.0, ..Ramp::default() },
        attention_factor: Some(0.9),
        ..Yarn::new(4.0, 32768)
    };
    let scaling = yarn.into();
    RopeConfig { scaling, max_position_embeddings: 131072, ..RopeConfig::new(8, 1e6) }
}

fn with(base: &RopeConfig, scaling: &str, factor: f64, params: &[(&str, &str)]) -> Result<RopeConfig> {
    base.with_override(&RopeOverride {
        scaling: Some(scaling.into()),
        factor: (factor > 0.0).then_some(factor),
        params: params.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect(),
        ..Default::default()
    })
}

#[test]
fn a_scaling_applies_to_the_trained_context() {
    let base = yarn_checkpoint();
    for mode in ["dynamic", "yarn", "ntk-by-parts", "llama3"] {
        let config = base.for_mode(mode, 8.0).expect("valid");
        assert_eq!(config.original_context(), 32768, "{mode}");
        assert_eq!((config.scaling.name(), config.scaling.factor()), (mode, Some(8.0)));
    }
    let plain = RopeConfig::new(8, 1e4);
    assert_eq!(plain.for_mode("dynamic", 2.0).expect("valid").original_context(), 2048);
    let change = RopeOverride {
        scaling: Some("yarn".into()),
        factor: Some(2.0),
        original_context: Some(512),
        ..Default::default()
    };
    assert_eq!(plain.with_override(&change).expect("valid").original_context(), 512);
}

#[test]
fn none_removes_the_scaling_and_keeps_theta() {
    for mode in ["none", "default"] {
        let config = yarn_checkpoint().for_mode(mode, 8.0).expect("valid");
        assert_eq!((config.scaling, config.theta), (RopeScaling::default(), 1e6));
    }
    let theta = RopeOverride { theta: Some(5e5), ..Default::default() };
    let config = yarn_checkpoint().with_override(&theta).expect("valid");
    assert_eq!(config, RopeConfig { theta: 5e5, ..yarn_checkpoint() });
}

#[test]
fn keys_of_the_same_scaling_survive() {
    let RopeScaling::Yarn(Yarn { ramp, attention_factor, .. }) =
        with(&yarn_checkpoint(), "yarn", 0.0, &[]).expect("valid").scaling
    else {
        panic!("yarn")
    };
    assert_eq!((ramp.beta_fast, attention_factor), (24.0, Some(0.9)));
    // An explicit attention factor belonged to the factor that is replaced.
    let RopeScaling::Yarn(Yarn { attention_factor, ramp, .. }) =
        with(&yarn_checkpoint(), "yarn", 8.0, &[("beta_slow", "2"), ("truncate", "false")]).expect("valid").scaling
    else {
        panic!("yarn")
    };
    assert_eq!((attention_factor, ramp), (None, Ramp { beta_fast: 24.0, beta_slow: 2.0, truncate: false }));
}

#[test]
fn lists_are_parsed() {
    let lists = [("short_factor", "1,1.5, 2,3"), ("long_factor", "2,3,4,5")];
    let config = with(&RopeConfig::new(8, 1e4), "longrope", 2.0, &lists).expect("valid");
    let RopeScaling::LongRope(LongRope { short_factor, factor, .. }) = config.scaling else { panic!("longrope") };
    assert_eq!((short_factor, factor), (vec![1.0, 1.5, 2.0, 3.0], Some(2.0)));
}

#[test]
fn a_proportional_encoding_keeps_its_share() {
    let scaling = Proportional { partial_rotary_factor: 0.25, factor: 8.0 }.into();
    let base = RopeConfig { scaling, ..RopeConfig::new(8, 1e4) };
    let expect = |factor| RopeScaling::Proportional(Proportional { partial_rotary_factor: 0.25, factor });
    assert_eq!(base.for_mode("none", 2.0).expect("valid").scaling, expect(1.0));
    assert_eq!(base.for_mode("linear", 2.0).expect("valid").scaling, expect(2.0));
    assert!(base.for_mode("yarn", 2.0).is_err());
    let plain = RopeConfig { rotary_dim: 4, ..RopeConfig::new(8, 1e4) };
    let config = with(&plain, "proportional", 2.0, &[("partial_rotary_factor", "0.5")]).expect("valid");
    assert_eq!((config.rotary_dim, config.frequencies(1).inv_freq[2]), (8, 0.0));
}

#[test]
fn mistakes_are_named() {
    let plain = RopeConfig::new(8, 1e4);
    let cases = [
        (with(&plain, "hyper", 2.0, &[]), "\"hyper\""),
        (with(&plain, "linear", 0.0, &[]), "linear needs a `factor`"),
        (with(&plain, "linear", 2.0, &[("beta_fast", "3")]), "\"beta_fast\""),
        (with(&plain, "yarn", 2.0, &[("beta_fast", "x")]), "beta_fast must be a number"),
        (with(&plain, "yarn", 2.0, &[("beta_fast", "3"), ("beta_fast", "4")]), "given twice"),
        (with(&plain, "yarn", 2.0, &[("factor", "3")]), "given twice"),
        (with(&plain, "yarn", 2.0, &[("truncate", "yes")]), "truncate"),
        (with(&plain, "yarn", f64::NAN, &[]), "needs a `factor`"),
        (with(&plain, "yarn", 0.0, &[("factor", "nan")]), "factor must be a positive number"),
        (with(&plain, "longrope", 2.0, &[]), "short_factor"),
        (
            with(&plain, "longrope", 2.0, &[("short_factor", "1,2"), ("long_factor", "1,2")]),
            "short_factor has 2 entries",
        ),
        (with(&plain, "none", 2.0, &[]), "needs a scaling"),
        (with(&RopeConfig::new(2, 1e4), "ntk", 2.0, &[]), "rotary width"),
    ];
    for (result, named) in cases {
        let message = result.expect_err(named).to_string();
        assert!(message.contains(named), "{message} should name {named}");
    }
    let only_factor = RopeOverride { factor: Some(2.0), ..Default::default() };
    assert!(plain.with_override(&only_factor).is_err());
    assert_eq!(yarn_checkpoint().with_override(&only_factor).expect("valid").scaling.factor(), Some(2.0));
}
