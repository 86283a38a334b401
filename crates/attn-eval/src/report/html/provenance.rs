//! What was measured, on what, and how to repeat it: this section is the same in every report of measurements.

use super::{Cell, Head, Page, Table};
use crate::report::{About, TextInfo, factor};

/// Writes the section's content.
pub(super) fn provenance(page: &mut Page, about: &About) {
    let command: Vec<String> = about.command.iter().map(|word| quoted(word)).collect();
    page.code("command", "command", &command.join(" "));
    let (checkpoint, settings) = (&about.checkpoint, &about.settings);
    let windows =
        settings.stride.map_or("one after the other, without overlap".into(), |n| format!("one every {n} tokens"));
    let retrieval = settings.retrieval.as_ref();
    // With perplexity, the seed is also that of the bootstrap.
    let seed_of = if retrieval.is_some() && about.texts.is_empty() { "seed of the trials" } else { "seed" };
    let windows = if about.texts.is_empty() { String::new() } else { windows };
    if about.models.is_empty() {
        page.facts(&[
            ("model", checkpoint.name.clone()),
            ("revision", checkpoint.revision.clone().unwrap_or_default()),
            ("sha256", checkpoint.sha256.clone()),
            ("family", format!("{}, {} weights", checkpoint.family, checkpoint.parameters)),
            ("own scaling", checkpoint.rope_type.clone()),
            ("factor", settings.factor.map_or("each context / trained context".into(), factor)),
            ("BOS before each window or prompt", settings.bos_line()),
        ]);
    }
    page.facts(&[
        ("windows", windows),
        ("trials", retrieval.map_or(String::new(), |r| format!("{} per depth", r.trials))),
        ("computed with", format!("{} on {}", settings.dtype, settings.device)),
        ("keys stored as", settings.cache_type_k.clone().unwrap_or_default()),
        ("values stored as", settings.cache_type_v.clone().unwrap_or_default()),
        (seed_of, settings.seed.to_string()),
        ("programs", format!("attn {}, candle {}", about.versions.attn, about.versions.candle)),
        ("started", date(about.started)),
    ]);
    for machine in &about.machines {
        let cpu = machine.cpu.clone().unwrap_or_else(|| "unknown processor".into());
        page.facts(&[(
            "machine",
            format!("{cpu}, {} cores, {} threads, {} {}", machine.cores, machine.threads, machine.os, machine.arch),
        )]);
    }
    let haystack = retrieval.and_then(|retrieval| retrieval.haystack.as_ref());
    let texts: Vec<&TextInfo> = about.texts.iter().chain(haystack.filter(|text| !about.texts.contains(text))).collect();
    if !texts.is_empty() {
        page.table(&table(&texts));
    }
    if checkpoint.files.len() > 1 && about.models.is_empty() {
        let rows = checkpoint.files.iter();
        let rows = rows.map(|file| {
            vec![
                Cell::text(&file.name),
                Cell::number(file.bytes as f64, file.bytes.to_string()),
                Cell::text(&file.sha256),
            ]
        });
        page.begin_details("Files of the model");
        page.table(&Table {
            id: "files".into(),
            caption: "Files of the model".into(),
            heads: vec![Head::text("file"), Head::number("bytes"), Head::text("sha256")],
            rows: rows.collect(),
        });
        page.end_details();
    }
}

fn table(texts: &[&TextInfo]) -> Table {
    let rows = texts.iter().map(|text| {
        vec![
            Cell::text(&text.name),
            Cell::count(text.used_bytes.unwrap_or(text.used)),
            Cell::optional(text.tokens.map(|n| n as f64), |n| format!("{n:.0}")),
            Cell::count(text.documents),
            Cell::count(text.bytes),
            Cell::text(&text.sha256),
        ]
    });
    let used = if texts.iter().any(|text| text.used_bytes.is_some()) { "bytes used" } else { "tokens used" };
    let heads = [used, "tokens", "documents", "bytes"].map(Head::number);
    Table {
        id: "texts".into(),
        caption: "Texts".into(),
        heads: std::iter::once(Head::text("text")).chain(heads).chain([Head::text("sha256")]).collect(),
        rows: rows.collect(),
    }
}

/// A word, quoted for a shell if that is needed.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=,:@+%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_string()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

/// Seconds since 1970 as `2026-01-31 12:34 UTC` (Howard Hinnant's civil_from_days).
fn date(seconds: u64) -> String {
    let (days, minutes) = ((seconds / 86_400) as i64, seconds % 86_400 / 60);
    let shifted = days + 719_468;
    let (era, of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year}-{month:02}-{day:02} {:02}:{:02} UTC", minutes / 60, minutes % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_and_words_read_back() {
        assert_eq!(date(0), "1970-01-01 00:00 UTC");
        assert_eq!(date(1_767_225_599), "2025-12-31 23:59 UTC");
        assert_eq!(date(4_107_542_400), "2100-03-01 00:00 UTC");
        assert_eq!(
            [quoted("a-b/c.txt"), quoted("a b"), quoted("it's"), quoted("")],
            ["a-b/c.txt", "'a b'", "'it'\\''s'", "''"]
        );
    }
}
