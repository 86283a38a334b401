//! Rows of token ids, as JSON.
//!
//! Depends on nothing else of this crate, so that its fuzz target can include it.

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// Rows of token ids, all equally long and none empty.
///
/// # Errors
/// No JSON, or none of that form; the row and column of what is wrong.
pub(crate) fn parse(text: &str) -> Result<Vec<Vec<u32>>> {
    const FORM: &str = "ids have the form [[1, 2], [3, 4]]";
    let value: Value = serde_json::from_str(text).context("not JSON")?;
    let rows = value.as_array().context(FORM)?;
    let rows = rows.iter().enumerate().map(|(r, row)| {
        let row = row.as_array().with_context(|| format!("row {r} is no list: {FORM}"))?;
        let ids = row.iter().enumerate().map(|(c, id)| {
            let number = id.as_u64().and_then(|id| u32::try_from(id).ok());
            number.with_context(|| format!("{id} in row {r}, column {c} is no token id"))
        });
        ids.collect::<Result<Vec<u32>>>()
    });
    let rows: Vec<Vec<u32>> = rows.collect::<Result<_>>()?;
    let width = rows.first().map_or(0, Vec::len);
    ensure!(width > 0, "there are no ids: {FORM}");
    if let Some(r) = rows.iter().position(|row| row.len() != width) {
        bail!("row {r} has {} ids, row 0 has {width}: rows have to be equally long", rows[r].len());
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn ids_are_a_rectangle_and_what_is_not_is_named() {
        assert_eq!(parse("[[1, 2], [3, 4]]").unwrap(), [[1, 2], [3, 4]]);
        for (value, part) in [
            (json!([[1, 2], [3]]), "row 1 has 1 ids, row 0 has 2"),
            (json!([1, 2]), "row 0 is no list"),
            (json!([[1, -2]]), "-2 in row 0, column 1"),
            (json!([[1, 5_000_000_000u64]]), "5000000000 in row 0, column 1"),
            (json!([[1, "x"]]), "\"x\" in row 0, column 1"),
            (json!([]), "no ids"),
            (json!([[]]), "no ids"),
            (json!({}), "form"),
        ] {
            let error = parse(&value.to_string()).unwrap_err().to_string();
            assert!(error.contains(part), "{value}: {error}");
        }
        assert!(parse("[[1,").unwrap_err().to_string().contains("not JSON"));
    }
}
