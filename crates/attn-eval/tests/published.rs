//! Published config.json files, reduced to the keys that matter, are explained with the frequencies and attention factors
//! that transformers 5.24 computes from them.
#![allow(missing_docs)]

use attn_eval::encoding::{Description, describe};
use attn_models::config::UnknownKeys;
use attn_models::families::{self, Positions};
use serde_json::Value;

fn published() -> serde_json::Map<String, Value> {
    let path = format!("{}/../../tests/data/published_configs.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(&path).expect(&path)).expect("a JSON object")
}

/// Whether an encoding is the one that transformers has for some type of layer.
fn agrees(encoding: &Description, wanted: &Value) -> bool {
    let near = |got: f64, want: f64| (got - want).abs() <= 3e-6 * want.abs().max(1e-12);
    let number = |value: &Value| value.as_f64().unwrap_or(f64::NAN);
    let mut listed = wanted["inv_freq"].as_object().into_iter().flatten();
    let each = |(index, want): (&String, &Value)| {
        let index: usize = index.parse().expect("an index");
        encoding.inv_freq.get(index).is_some_and(|got| near(*got, number(want)))
    };
    wanted["pairs"] == encoding.inv_freq.len()
        && (encoding.attention_factor.unwrap_or(f64::NAN) - number(&wanted["attention_factor"])).abs() < 1e-5
        && listed.all(each)
}

#[test]
fn published_configs_are_read_as_transformers_reads_them() {
    let mut wrong = vec![];
    let published = published();
    assert!(published.len() > 60);
    for (name, facts) in &published {
        let Positions { spec, .. } = match families::positions(&facts["config"], UnknownKeys::Refuse) {
            Ok(read) => read,
            Err(error) => {
                wrong.push(format!("{name}: {error}"));
                continue;
            }
        };
        for (length, key) in [(1024, "at_1024"), (200_000, "at_200000")] {
            let wanted = facts[key].as_array().or(facts["at_1024"].as_array());
            let groups = spec.stack.encodings();
            let described = groups.iter().map(|group| describe(group.config, length));
            let ropes: Vec<Description> = described.filter(|encoding| encoding.kind == "rope").collect();
            let Some(wanted) = wanted else { continue };
            if ropes.is_empty() || !ropes.iter().all(|rope| wanted.iter().any(|wanted| agrees(rope, wanted))) {
                let said: Vec<_> = ropes.iter().map(|r| (r.rope_type, r.inv_freq.len(), r.attention_factor)).collect();
                wrong.push(format!("{name} at {length}: {said:?}"));
            }
            // Under a scaling, this project's trained context is the one before the scaling.
            let plain = wanted.iter().all(|wanted| wanted["rope_type"] == "default");
            if plain && facts["trained_context"] != serde_json::json!(spec.trained_context) {
                wrong.push(format!("{name}: trained to {:?}, not {}", spec.trained_context, facts["trained_context"]));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
