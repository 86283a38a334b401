//! The schema of a comparison, and a check against it.

use super::repository;
use serde_json::Value;
use std::fs;

/// The schema of what `attn compare --json` prints.
pub(crate) fn schema() -> Value {
    let text = fs::read(repository().join("docs/compare.schema.json")).expect("the schema");
    serde_json::from_slice(&text).expect("the schema is JSON")
}

/// What a reference into the schema stands for.
fn resolved<'a>(reference: &str, root: &'a Value) -> &'a Value {
    root.pointer(reference.trim_start_matches('#')).expect("the definition is there")
}

/// Checks `value` against the part of JSON Schema that the schema uses, and panics where it departs from it.
pub(crate) fn validate(value: &Value, schema: &Value, root: &Value, at: &str) {
    if let Some(reference) = schema["$ref"].as_str() {
        return validate(value, resolved(reference, root), root, at);
    }
    if let Some(variants) = schema["anyOf"].as_array() {
        // Null or not, or one of several formats.
        let fits = |variant: &&Value| {
            let variant = variant["$ref"].as_str().map_or(*variant, |reference| resolved(reference, root));
            let format = &variant["properties"]["format"]["const"];
            (variant["type"] == "null") == value.is_null() && (format.is_null() || *format == value["format"])
        };
        return validate(value, variants.iter().find(fits).expect("a variant"), root, at);
    }
    if let Some(constant) = schema.get("const") {
        return assert_eq!(value, constant, "{at}");
    }
    let kinds: Vec<&str> = match &schema["type"] {
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect(),
        kind => kind.as_str().into_iter().collect(),
    };
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_u64() || n.is_i64() => "integer",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let fits = kinds.contains(&kind) || (kind == "integer" && kinds.contains(&"number"));
    assert!(fits, "{at} is {kind}, not {kinds:?}");
    if let Some(values) = schema["enum"].as_array() {
        assert!(values.contains(value), "{at} is {value}, not one of {values:?}");
    }
    if let Value::Object(object) = value {
        for (key, value) in object {
            let at = format!("{at}.{key}");
            let known = schema["properties"].get(key).or(schema.get("additionalProperties").filter(|s| s.is_object()));
            validate(value, known.unwrap_or_else(|| panic!("{at} is not in the schema")), root, &at);
        }
        for key in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            assert!(object.contains_key(key), "{at} lacks {key}");
        }
    }
    if let Value::Array(items) = value {
        for bound in ["minItems", "maxItems"].iter().filter_map(|key| schema[key].as_u64()) {
            assert_eq!(items.len() as u64, bound, "{at}");
        }
        for (index, item) in items.iter().enumerate() {
            validate(item, &schema["items"], root, &format!("{at}[{index}]"));
        }
    }
}

/// Checks a document of `attn compare --json`.
pub(crate) fn check_schema(document: &Value) {
    let schema = schema();
    validate(document, &schema, &schema, "$");
}
