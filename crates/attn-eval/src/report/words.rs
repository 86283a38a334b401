//! Modes, lists and shares as words in sentences.

/// A mode's name inside a sentence.
pub(super) fn called(mode: &str) -> &str {
    match mode {
        "none" => "no scaling",
        "checkpoint" => "the checkpoint's own scaling",
        mode => mode,
    }
}

/// A mode as the subject of a sentence: "none finds the key" would mean that no mode does.
pub(super) fn finder(mode: &str) -> &str {
    if mode == "none" { "the model without scaling" } else { called(mode) }
}

/// `a`, `a and b`, `a, b and c`.
pub(super) fn listed(names: &[&str]) -> String {
    match names {
        [names @ .., last] if !names.is_empty() => format!("{} and {last}", names.join(", ")),
        names => names.concat(),
    }
}

/// A share in whole percent.
pub(super) fn percent(share: f64) -> String {
    format!("{:.0}%", share * 100.0)
}
