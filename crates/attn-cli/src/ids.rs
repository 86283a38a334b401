//! Rows of token ids, as JSON.
//!
//! Depends on nothing else of this crate, so that its fuzz target can include it.

use anyhow::{Result, ensure};
use serde::de::{DeserializeSeed, Deserializer, Error, SeqAccess, Visitor};
use std::fmt::Formatter;

const FORM: &str = "ids have the form [[1, 2], [3, 4]]";

/// Rows of token ids, all equally long and none empty, one after the other.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Rows {
    /// The ids of all of them.
    pub(crate) ids: Vec<u32>,
    /// Ids of each.
    pub(crate) width: usize,
}

impl Rows {
    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.ids.len() / self.width.max(1)
    }
}

/// Reads rows of ids; no more is held of them than the ids themselves.
///
/// # Errors
/// No JSON, or none of that form; the row and column of what is wrong.
pub(crate) fn parse(text: &str) -> Result<Rows> {
    let mut rows = Rows::default();
    let mut json = serde_json::Deserializer::from_str(text);
    let read = json.deserialize_seq(&mut rows).and_then(|()| json.end());
    read.map_err(|error| match error.is_data() {
        true => anyhow::Error::new(error).context(FORM),
        false => anyhow::Error::new(error).context("not JSON"),
    })?;
    ensure!(rows.width > 0, "there are no ids: {FORM}");
    Ok(rows)
}

impl<'de> Visitor<'de> for &mut Rows {
    type Value = ();

    fn expecting(&self, out: &mut Formatter<'_>) -> std::fmt::Result {
        write!(out, "a list of rows")
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut rows: S) -> Result<(), S::Error> {
        let mut row = 0;
        loop {
            let before = self.ids.len();
            let Some(()) = rows.next_element_seed(Row { ids: &mut self.ids, row })? else { return Ok(()) };
            let width = self.ids.len() - before;
            if row == 0 {
                self.width = width;
            }
            if width != self.width {
                let first = self.width;
                return Err(S::Error::custom(format!(
                    "row {row} has {width} ids, row 0 has {first}: rows have to be equally long"
                )));
            }
            row += 1;
        }
    }
}

struct Row<'a> {
    ids: &'a mut Vec<u32>,
    row: usize,
}

impl<'de> DeserializeSeed<'de> for Row<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Row<'_> {
    type Value = ();

    fn expecting(&self, out: &mut Formatter<'_>) -> std::fmt::Result {
        write!(out, "a list as row {}", self.row)
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut ids: S) -> Result<(), S::Error> {
        for column in 0.. {
            let Some(id) = ids.next_element_seed(Id { row: self.row, column })? else { break };
            self.ids.push(id);
        }
        Ok(())
    }
}

struct Id {
    row: usize,
    column: usize,
}

impl<'de> DeserializeSeed<'de> for Id {
    type Value = u32;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<u32, D::Error> {
        from.deserialize_u32(self)
    }
}

impl Visitor<'_> for Id {
    type Value = u32;

    fn expecting(&self, out: &mut Formatter<'_>) -> std::fmt::Result {
        write!(out, "a token id in row {}, column {}", self.row, self.column)
    }

    fn visit_u64<E: Error>(self, id: u64) -> Result<u32, E> {
        let (row, column) = (self.row, self.column);
        u32::try_from(id).map_err(|_| E::custom(format!("{id} in row {row}, column {column} is not a token id")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn ids_are_a_rectangle_and_what_is_not_is_named() {
        let rows = parse(" [[1, 2, 3], [4, 5, 6]] ").unwrap();
        assert_eq!((rows.count(), &rows), (2, &Rows { ids: vec![1, 2, 3, 4, 5, 6], width: 3 }));
        for (value, part) in [
            (json!([[1, 2], [3]]), "row 1 has 1 ids, row 0 has 2"),
            (json!([1, 2]), "expected a list as row 0"),
            (json!([[1, -2]]), "`-2`, expected a token id in row 0, column 1"),
            (json!([[1, 5_000_000_000u64]]), "5000000000 in row 0, column 1"),
            (json!([[1], ["x"]]), "\"x\", expected a token id in row 1, column 0"),
            (json!([]), "no ids"),
            (json!([[]]), "no ids"),
            (json!({}), "form"),
            (json!([[1], []]), "row 1 has 0 ids"),
        ] {
            let error = format!("{:#}", parse(&value.to_string()).unwrap_err());
            assert!(error.contains(part), "{value}: {error}");
        }
        assert!(parse("[[1]] 2").unwrap_err().to_string().contains("not JSON"));
        assert!(parse("[[1,").unwrap_err().to_string().contains("not JSON"));
    }
}
