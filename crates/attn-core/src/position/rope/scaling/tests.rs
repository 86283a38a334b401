//! A scheme that only tests have, to see that its file and its line in the table are all that it takes.

use super::scheme::{Info, Rotary, Scheme, dict};
use super::source::{Dict, Source};
use super::*;
use crate::position::{RopeConfig, RopeDefaults, RopeOverride};
use candle_core::Result;
use serde_json::{Value, json};

/// Every frequency divided by `factor` to the power of `bend`.
#[derive(Debug, Clone, PartialEq)]
pub struct Tenth {
    factor: f64,
    bend: f64,
}

impl Scheme for Tenth {
    const INFO: Info = Info {
        aliases: &["zehnte"],
        keys: &["bend"],
        compared: true,
        ..Info::new("the-tenth", "Bends every frequency.")
    };

    fn read(source: &mut Source) -> Result<Self> {
        Ok(Self { factor: source.factor()?, bend: source.required_or("bend", 2.0)? })
    }

    fn write(&self) -> Dict {
        dict([("factor", Some(self.factor.into())), ("bend", Some(self.bend.into()))])
    }

    fn frequencies(&self, rotary: Rotary, _len: usize) -> Vec<f64> {
        rotary.plain().iter().map(|f| f / self.factor.powf(self.bend)).collect()
    }

    fn factor(&self) -> Option<f64> {
        Some(self.factor)
    }
}

fn from_config(dict: Value) -> Result<Option<RopeConfig>> {
    let config = json!({"max_position_embeddings": 64, "rope_scaling": dict});
    RopeConfig::from_hf(&config, None, &RopeDefaults::new(8))
}

fn overriding(base: &RopeConfig, scaling: &str, params: &[(&str, &str)]) -> Result<RopeConfig> {
    let params = params.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
    base.with_override(&RopeOverride { scaling: Some(scaling.into()), factor: Some(4.0), params, ..Default::default() })
}

#[test]
fn a_scheme_is_one_file_and_one_line() -> Result<()> {
    // Read from a config, under any of its names, with its keys and no others.
    let read = from_config(json!({"type": "zehnte", "factor": 4.0, "bend": 0.5}))?.expect("rotary");
    assert_eq!(read.scaling, Tenth { factor: 4.0, bend: 0.5 }.into());
    assert_eq!(read.frequencies(1).inv_freq[0], 0.5);
    let error = |dict: Value| from_config(dict).expect_err("refused").to_string();
    assert!(error(json!({"type": "the-tenth", "factor": 4.0})).contains("bend is missing"));
    assert!(error(json!({"type": "the-tenth", "factor": -1.0, "bend": 1})).contains("factor must be a positive"));
    assert!(error(json!({"type": "none-such"})).contains("the-tenth"), "lists of what is known have it");
    // Its keys are known to do nothing elsewhere.
    assert!(from_config(json!({"type": "linear", "factor": 4.0, "bend": 3}))?.is_some());
    // Put over a checkpoint, with its default, with a parameter, and keeping its own values.
    let plain = RopeConfig::new(8, 1e4);
    let default = overriding(&plain, "the_tenth", &[])?;
    assert_eq!(default.scaling, Tenth { factor: 4.0, bend: 2.0 }.into());
    let bent = overriding(&plain, "the-tenth", &[("bend", "3")])?;
    assert_eq!(overriding(&bent, "the-tenth", &[])?.scaling, bent.scaling);
    assert!(overriding(&plain, "linear", &[("bend", "3")]).expect_err("not linear's").to_string().contains("bend"));
    assert_eq!(plain.for_mode("the-tenth", 4.0)?, default);
    // Written for transformers, and back.
    let written = bent.to_hf()?;
    assert_eq!((&written["rope_type"], &written["bend"]), (&json!("the-tenth"), &json!(3.0)));
    assert!(from_config(Value::Object(written))?.expect("rotary").same_frequencies(&bent));
    assert_eq!(bent.extended_context(), 4 * 2048);
    assert!(bent.scaling.to_llama_cpp(bent.rotary()).is_err());
    Ok(())
}

#[test]
fn names_are_distinct_and_summaries_are_sentences() {
    let spellings = |scheme: &SchemeInfo| {
        let mut all = vec![scheme.name, scheme.called()];
        all.dedup();
        all.extend(scheme.aliases);
        all
    };
    let mut seen = vec![];
    for scheme in SCHEMES {
        for name in spellings(scheme) {
            assert!(!seen.contains(&name), "{name} stands for two schemes");
            seen.push(name);
            assert_eq!(super::scheme(name).is_some(), scheme.named, "{name}");
        }
        assert!(scheme.summary.ends_with('.') && !scheme.summary.contains('\n'), "{}", scheme.name);
    }
    assert_eq!(super::scheme("ntk_by_parts").map(|scheme| scheme.name), Some("ntk-by-parts"));
}

#[test]
fn a_scaling_written_and_read_again_is_the_same() {
    for config in crate::position::laws::ropes() {
        let scheme = config.scaling.scheme();
        assert_eq!(scheme.name, config.scaling.name());
        let again = config.with_override(&RopeOverride::default()).expect(scheme.name);
        assert_eq!(again, config, "{}", scheme.name);
    }
}
