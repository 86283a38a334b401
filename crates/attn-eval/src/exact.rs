//! Numbers in run files are written as strings, so that reading gives back exactly the bits that were written.
//!
//! `serde_json` writes the shortest text that stands for an `f64`, but reads it with a rounding error of up to one unit
//! in the last place unless its feature `float_roundtrip` is on, which makes all reading of numbers slower. Rust's own parser is
//! exact.

use serde::{Deserialize, Deserializer, Serializer, de::Error};

/// Writes a number as a string.
pub(crate) fn serialize<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&value.to_string())
}

/// Reads a finite number from a string.
pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
    match text.parse::<f64>() {
        Ok(value) if value.is_finite() => Ok(value),
        _ => Err(D::Error::custom(format!("{text:?} is not a finite number"))),
    }
}

/// Numbers that may be absent.
pub(crate) mod optional {
    use serde::{Deserializer, Serializer};

    /// Writes a number as a string, and null for none.
    pub(crate) fn serialize<S: Serializer>(value: &Option<f64>, serializer: S) -> Result<S::Ok, S::Error> {
        match value {
            Some(value) => super::serialize(value, serializer),
            None => serializer.serialize_none(),
        }
    }

    /// Reads a finite number from a string.
    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
        super::deserialize(deserializer).map(Some)
    }
}

/// Numbers that may be too large for an `f64`, such as the perplexity of 800 nats: JSON has no infinity, so null stands for
/// it.
pub(crate) mod or_too_large {
    use serde::{Deserialize, Deserializer, Serializer};

    /// Writes null for what is not finite.
    pub(crate) fn serialize<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
        if value.is_finite() { serializer.serialize_f64(*value) } else { serializer.serialize_none() }
    }

    /// Reads null as infinity.
    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
        Ok(Option::deserialize(deserializer)?.unwrap_or(f64::INFINITY))
    }
}

#[cfg(test)]
mod tests {
    use crate::perplexity::Bucket;
    use crate::rng::Rng;

    #[test]
    fn what_is_read_is_what_was_written_to_the_last_bit() {
        let mut rng = Rng::new(1);
        for _ in 0..10_000 {
            let sum = f64::from_bits(rng.next_u64());
            if !sum.is_finite() {
                continue;
            }
            let text = serde_json::to_string(&Bucket { sum, tokens: 1 }).unwrap();
            assert_eq!(serde_json::from_str::<Bucket>(&text).unwrap().sum.to_bits(), sum.to_bits(), "{text}");
        }
        assert!(serde_json::from_str::<Bucket>(r#"{"sum":"NaN","tokens":1}"#).is_err());
    }
}
