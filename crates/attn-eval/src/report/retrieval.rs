//! The results of retrieval: in a sentence, in a line per task and context, and as CSV.

use super::words::{called, finder, listed, percent};
use crate::retrieval::{Retrieval, RetrievalCell, Share, TaskResult};

/// The modes with the shares that `of` gives, the best first; a mode that is the same computation as another is left out.
fn ranked(retrieval: &Retrieval, context: usize, of: impl Fn(&str) -> Option<Share>) -> Vec<(&str, Share)> {
    let repeats = |mode: &str| {
        let mut totals = retrieval.totals.iter().filter(|total| total.mode == mode && total.context == context);
        totals.any(|total| total.same_as.is_some())
    };
    let modes = retrieval.modes.iter().filter(|mode| !repeats(mode));
    let mut found: Vec<(&str, Share)> = modes.filter_map(|mode| Some((mode.as_str(), of(mode)?))).collect();
    found.sort_by(|a, b| b.1.value().total_cmp(&a.1.value()));
    found
}

/// `96% (80% to 99%)`.
pub(super) fn with_interval(share: Share) -> String {
    let interval = share.interval();
    format!("{} ({} to {})", percent(share.value()), percent(interval.low), percent(interval.high))
}

/// A sentence that says which mode finds most at the longest context, and which others are not significantly worse.
pub fn retrieval_headline(retrieval: &Retrieval, trained: Option<usize>) -> String {
    let able = retrieval.able_names();
    if able.is_empty() {
        return match retrieval.tasks.iter().any(|task| task.reference.is_some()) {
            true => "The model fails all of these tasks within its trained length, so they say nothing about scalings."
                .into(),
            false => {
                "Only lengths beyond the trained one were measured, so it is not known what the model can do.".into()
            }
        };
    }
    let at = |context: usize| ranked(retrieval, context, |mode| retrieval.pooled(mode, context));
    let longest = retrieval.contexts.iter().copied().filter(|&context| !at(context).is_empty()).max();
    let Some(longest) = longest else {
        return "At no length were all tasks measured that the model can do.".to_string();
    };
    let found = at(longest);
    let Some(&(best, share)) = found.first() else { return "Nothing was measured.".to_string() };
    let (place, what) = match trained {
        Some(n) if longest > n => (format!("At {longest} tokens (trained: {n})"), listed(&able)),
        _ => (format!("At {longest} tokens"), listed(&able)),
    };
    if share.value() == 0.0 {
        return format!("{place} no mode finds anything ({what}).");
    }
    let lead = format!("{place} {} finds {} of what is hidden ({what})", finder(best), percent(share.value()));
    let tied = |other: &Share| share.above(*other).low <= 0.0;
    let tied: Vec<&str> = found[1..].iter().filter(|(_, other)| tied(other)).map(|(mode, _)| called(mode)).collect();
    let none = found.iter().find(|(mode, _)| *mode == "none" && *mode != best && !tied.contains(&called(mode)));
    let none = none.map_or(String::new(), |(_, s)| format!(", without scaling {}", percent(s.value())));
    match (found.len(), tied.as_slice()) {
        (1, _) => format!("{lead}."),
        (_, []) => format!("{lead}{none}; all other modes find significantly less."),
        (_, tied) => {
            format!("{lead}{none}; {} trials show no significant difference from {}.", share.trials(), listed(tied))
        }
    }
}

/// A sentence that says why nothing is concluded from a task; `None` for a task that counts.
pub(super) fn cannot(task: &TaskResult) -> Option<String> {
    let name = &task.name;
    match (task.able, task.reference, task.share.zip(task.interval)) {
        (true, ..) => None,
        (_, Some(context), Some((share, interval))) => Some(format!(
            "{name} is not counted: at {context} tokens, within its trained length, the model finds {} ({} to {}).",
            percent(share),
            percent(interval.low),
            percent(interval.high)
        )),
        _ => Some(format!("{name} is not counted: it was not measured within the trained length.")),
    }
}

/// A line for each task that the model can't do, then one for each other task and context, with what every mode found and the
/// interval of the best one.
pub fn retrieval_verdict(retrieval: &Retrieval) -> Vec<String> {
    let line = |task: &TaskResult, context: usize| {
        let found = ranked(retrieval, context, |mode| retrieval.share(&task.name, mode, context, None));
        let (&(best, share), others) = found.split_first()?;
        let figures = format!("{} in {} trials", with_interval(share), share.trials());
        let place = format!("{} at {context}", task.name);
        if others.is_empty() && retrieval.modes.len() > 1 {
            return Some(format!("{place}: all modes give the same answers and find {figures}"));
        }
        let others: Vec<String> =
            others.iter().map(|(mode, s)| format!("{} {}", called(mode), percent(s.value()))).collect();
        let rest = if others.is_empty() { String::new() } else { format!(", {}", others.join(", ")) };
        Some(format!("{place}: {} finds {figures}{rest}", finder(best)))
    };
    let mut lines: Vec<String> = retrieval.tasks.iter().filter_map(cannot).collect();
    for task in retrieval.able() {
        lines.extend(retrieval.contexts.iter().filter_map(|&context| line(task, context)));
    }
    lines
}

/// The cells as CSV.
pub fn retrieval_csv(retrieval: &Retrieval) -> String {
    let mut out =
        String::from("task,mode,context,depth,factor,trials,found,wanted,answer_nll,answer_tokens,seconds,same_as\n");
    for cell in &retrieval.cells {
        let RetrievalCell { task, mode, context, factor, trials, found, wanted, .. } = cell;
        let RetrievalCell { answer_nll, answer_tokens, seconds, .. } = cell;
        let depth = cell.depth.map_or(String::new(), |depth| depth.to_string());
        let same_as = cell.same_as.as_deref().unwrap_or_default();
        out.push_str(&format!(
            "{task},{mode},{context},{depth},{factor},{trials},{found},{wanted},{answer_nll},{answer_tokens},{seconds},\
             {same_as}\n"
        ));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::heat::tests::{retrieval, retrieval_of};

    /// "none" finds everything up to 4096 tokens and nothing further on; "ntk-by-parts" finds half at every context.
    #[test]
    fn the_headline_names_the_mode_that_still_finds() {
        let found = retrieval();
        let said = retrieval_headline(&found, Some(4096));
        assert_eq!(
            said,
            "At 65536 tokens (trained: 4096) ntk-by-parts finds 50% of what is hidden (passkey), without scaling 0%; all \
             other modes find significantly less."
        );
        let lines = retrieval_verdict(&found);
        assert_eq!(lines.len(), 5);
        assert_eq!(lines[1], "passkey at 8192: ntk-by-parts finds 50% (25% to 75%) in 12 trials, no scaling 0%");
    }

    #[test]
    fn ties_repeats_and_failures_are_told() {
        let found = retrieval_of(&|_, _, _| 2, |_| ());
        let said = retrieval_headline(&found, None);
        let tied = "12 trials show no significant difference from ntk-by-parts";
        assert!(
            said.starts_with("At 65536 tokens the model without scaling finds 50%") && said.contains(tied),
            "{said}"
        );
        let same = retrieval_of(&|_, _, _| 2, |spec| {
            spec.same_as = (spec.mode != "none").then(|| "none".into());
        });
        assert!(
            retrieval_verdict(&same)[0].starts_with("passkey at 4096: all modes give the same answers and find 50%")
        );
        let lost = retrieval_of(&|mode, context, _| if mode == "none" && context == 4096 { 4 } else { 0 }, |_| ());
        assert!(retrieval_headline(&lost, Some(4096)).ends_with("no mode finds anything (passkey)."));
    }

    #[test]
    fn a_model_that_can_not_do_a_task_is_said_to_be_so_once() {
        let found = retrieval_of(&|_, _, depth| usize::from(depth == 0), |_| ());
        let said = retrieval_headline(&found, Some(4096));
        assert!(said.contains("fails all of these tasks within its trained length"), "{said}");
        let lines = retrieval_verdict(&found);
        let wanted =
            "passkey is not counted: at 4096 tokens, within its trained length, the model finds 8% (1% to 35%).";
        assert_eq!(lines, [wanted]);
    }

    #[test]
    fn every_cell_is_a_line_of_csv() {
        let csv = retrieval_csv(&retrieval());
        assert_eq!(csv.lines().count(), 1 + 30);
        assert!(csv.contains("\npasskey,ntk-by-parts,8192,0.5,2,4,2,4,0.5,20,1,\n"), "{csv}");
    }
}
