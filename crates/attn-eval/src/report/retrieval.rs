//! What a retrieval task says: in a sentence, in a line per context, and as CSV.

use super::verdict::{called, listed};
use crate::passkey::{Passkey, PasskeyCell, Share};

/// The modes at one context with what they found, the best first; a mode that is the same computation as one before it
/// is left out.
fn ranked(passkey: &Passkey, context: usize) -> Vec<(&str, Share)> {
    let repeats = |mode: &str| {
        let mut cells = passkey.cells.iter().filter(|cell| cell.mode == mode && cell.context == context);
        cells.any(|cell| cell.same_as.is_some())
    };
    let modes = passkey.modes.iter().filter(|mode| !repeats(mode));
    let mut found: Vec<(&str, Share)> =
        modes.filter_map(|mode| Some((mode.as_str(), passkey.share(mode, context, None)?))).collect();
    found.sort_by(|a, b| b.1.value().total_cmp(&a.1.value()));
    found
}

/// A mode as the one who finds: "none finds the key" would be read as nobody.
fn finder(mode: &str) -> &str {
    if mode == "none" { "the model without scaling" } else { called(mode) }
}

pub(super) fn percent(share: f64) -> String {
    format!("{:.0}%", share * 100.0)
}

/// Which mode still finds the key at the longest context, and how sure that is.
pub fn retrieval_headline(passkey: &Passkey, trained: Option<usize>) -> String {
    let Some(&longest) = passkey.contexts.iter().max() else { return "Nothing was asked.".to_string() };
    let found = ranked(passkey, longest);
    let Some(&(best, share)) = found.first() else { return "Nothing was asked.".to_string() };
    let place = match trained {
        Some(n) if longest > n => format!("At {longest} tokens, past the {n} trained,"),
        _ => format!("At {longest} tokens"),
    };
    if share.correct == 0 {
        return format!("{place} the key is never found, under any mode.");
    }
    let lead = format!("{place} {} finds the key in {} of the trials", finder(best), percent(share.value()));
    let low = share.interval().low;
    let tied: Vec<&str> = found[1..].iter().filter(|(_, s)| s.value() >= low).map(|(mode, _)| called(mode)).collect();
    let none = found.iter().find(|(mode, _)| *mode == "none" && *mode != best && !tied.contains(&called(mode)));
    let none = none.map_or(String::new(), |(_, s)| format!(", without scaling in {}", percent(s.value())));
    match (found.len(), tied.as_slice()) {
        (1, _) => format!("{lead}."),
        (_, []) => format!("{lead}{none}; no other mode comes near."),
        (_, tied) => format!("{lead}{none}; {} trials can't tell it from {}.", share.trials, listed(tied)),
    }
}

/// A line per context: every mode with what it found, the best with its interval.
pub fn retrieval_verdict(passkey: &Passkey) -> Vec<String> {
    let line = |&context: &usize| {
        let found = ranked(passkey, context);
        let (&(best, share), others) = found.split_first()?;
        let (low, high) = (share.interval().low, share.interval().high);
        let figures = format!(
            "{} ({} of {}; 95% interval {} to {})",
            percent(share.value()),
            share.correct,
            share.trials,
            percent(low),
            percent(high)
        );
        if others.is_empty() && passkey.modes.len() > 1 {
            return Some(format!("{context}: all modes are the same and find {figures}"));
        }
        let others: Vec<String> =
            others.iter().map(|(mode, s)| format!("{} {}", called(mode), percent(s.value()))).collect();
        let rest = if others.is_empty() { String::new() } else { format!(", {}", others.join(", ")) };
        Some(format!("{context}: {} finds {figures}{rest}", finder(best)))
    };
    passkey.contexts.iter().filter_map(line).collect()
}

/// The cells as CSV.
pub fn retrieval_csv(passkey: &Passkey) -> String {
    let mut out = String::from("mode,context,depth,factor,trials,correct,seconds,same_as\n");
    for PasskeyCell { mode, context, depth, factor, trials, correct, seconds, same_as } in &passkey.cells {
        let same_as = same_as.as_deref().unwrap_or_default();
        out.push_str(&format!("{mode},{context},{depth},{factor},{trials},{correct},{seconds},{same_as}\n"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::heat::tests::passkey;

    /// "none" finds nothing, "ntk-by-parts" half of six trials a context.
    #[test]
    fn the_headline_names_the_mode_that_still_finds() {
        let found = passkey();
        let said = retrieval_headline(&found, Some(4096));
        assert_eq!(
            said,
            "At 65536 tokens, past the 4096 trained, ntk-by-parts finds the key in 50% of the trials, without scaling \
             in 0%; no other mode comes near."
        );
        let lines = retrieval_verdict(&found);
        assert_eq!(lines.len(), 5);
        assert_eq!(lines[0], "4096: ntk-by-parts finds 50% (3 of 6; 95% interval 19% to 81%), no scaling 0%");
    }

    #[test]
    fn ties_repeats_and_failures_are_told() {
        let mut found = passkey();
        found.cells.iter_mut().for_each(|cell| cell.correct = 1);
        let said = retrieval_headline(&found, None);
        assert!(
            said.starts_with("At 65536 tokens the model without scaling finds")
                && said.contains("can't tell it from ntk-by-parts"),
            "{said}"
        );
        for cell in found.cells.iter_mut().filter(|cell| cell.mode != "none") {
            cell.same_as = Some("none".into());
        }
        assert!(retrieval_verdict(&found)[0].starts_with("4096: all modes are the same and find 50%"));
        found.cells.iter_mut().for_each(|cell| cell.correct = 0);
        assert!(retrieval_headline(&found, None).ends_with("never found, under any mode."));
    }

    #[test]
    fn every_cell_is_a_line_of_csv() {
        let csv = retrieval_csv(&passkey());
        assert_eq!(csv.lines().count(), 1 + 30);
        assert!(csv.contains("\nntk-by-parts,8192,0.5,2,2,1,1,\n"), "{csv}");
    }
}
