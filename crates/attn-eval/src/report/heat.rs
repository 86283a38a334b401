//! Retrieval for a terminal: as heat maps, one per task and mode, with depths down and contexts across; and in short, one
//! table per task with modes down.
//!
//! Colour only repeats what the numbers say, so without it nothing is lost.

use super::TableStyle;
use super::blocks::fill;
use crate::retrieval::{Retrieval, Share};

/// Columns of the labels and of a cell.
const LABEL: usize = 12;
const CELL: usize = 7;
const RESET: &str = "\x1b[0m";

/// How many columns of `CELL` fit beside labels of `label` columns.
fn across(width: usize, label: usize) -> usize {
    ((width.max(label + CELL) - label) / CELL).max(1)
}

/// The heat maps, each line ending in a newline.
pub fn heat(retrieval: &Retrieval, style: TableStyle) -> String {
    let mut out = String::new();
    for task in &retrieval.tasks {
        out.push_str(&fill(&format!("{}: {}", task.name, task.summary), style.width, ""));
        out.push_str("\n\n");
        for mode in &retrieval.modes {
            for contexts in retrieval.contexts.chunks(across(style.width, LABEL)) {
                map(&mut out, retrieval, (&task.name, mode), contexts, style.color);
                out.push('\n');
            }
        }
    }
    let legend = format!("% found in {} trials per depth; depth: where it stands", retrieval.trials);
    out.push_str(&fill(&legend, style.width, ""));
    out.push('\n');
    out
}

/// What was found at all depths together, each line ending in a newline.
pub fn found(retrieval: &Retrieval, style: TableStyle) -> String {
    let label = retrieval.modes.iter().chain(retrieval.tasks.iter().map(|task| &task.name)).map(|name| name.len() + 2);
    let label = label.max().unwrap_or(0).max(LABEL);
    let mut out = String::new();
    for task in &retrieval.tasks {
        for contexts in retrieval.contexts.chunks(across(style.width, label)) {
            head(&mut out, &task.name, label, contexts);
            for mode in &retrieval.modes {
                let share = |context: usize| retrieval.share(&task.name, mode, context, None);
                row(&mut out, &format!("  {mode}"), label, contexts, &share, style.color);
            }
        }
    }
    let legend = format!("% found of what is hidden in a prompt of so many tokens, in {}", retrieval.haystack);
    out.push_str(&fill(&legend, style.width, ""));
    out.push('\n');
    out
}

fn map(out: &mut String, retrieval: &Retrieval, (task, mode): (&str, &str), contexts: &[usize], color: bool) {
    head(out, mode, LABEL, contexts);
    let share = |depth: Option<f64>| move |context: usize| retrieval.share(task, mode, context, depth);
    let asked = |depth: &&f64| contexts.iter().any(|&context| share(Some(**depth))(context).is_some());
    for &depth in retrieval.depths.iter().filter(asked) {
        row(out, &format!("depth {:>3.0}%", depth * 100.0), LABEL, contexts, &share(Some(depth)), color);
    }
    row(out, "all", LABEL, contexts, &share(None), color);
}

fn head(out: &mut String, name: &str, label: usize, contexts: &[usize]) {
    let mut line = format!("{name:<label$}");
    for context in contexts {
        line.push_str(&format!("{context:>CELL$}"));
    }
    out.push_str(line.trim_end());
    out.push('\n');
}

fn row(
    out: &mut String,
    name: &str,
    label: usize,
    contexts: &[usize],
    share: &dyn Fn(usize) -> Option<Share>,
    color: bool,
) {
    out.push_str(&format!("{name:<label$}"));
    contexts.iter().for_each(|&context| out.push_str(&figure(share(context).map(Share::value), color)));
    out.push('\n');
}

/// A percentage on a background between red and green.
fn figure(share: Option<f64>, color: bool) -> String {
    /// Five steps of the 256-colour palette, each read with black text on it.
    const STEPS: [u8; 5] = [210, 216, 222, 186, 120];
    let Some(share) = share else { return format!("{:>CELL$}", "–") };
    let text = format!("{:>width$}", format!("{:.0}", share * 100.0), width = CELL - 1);
    if !color {
        return format!(" {text}");
    }
    let step = STEPS[((share * STEPS.len() as f64) as usize).min(STEPS.len() - 1)];
    format!(" \x1b[30;48;5;{step}m{text}{RESET}")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::perplexity::Bucket;
    use crate::report::RetrievalSettings;
    use crate::report::html::tests_about;
    use crate::retrieval::{RetrievalScores, RetrievalSpec, summarise};

    /// Passkey under two modes, at five contexts and three depths, in four trials each of which `found` says how many find
    /// the key, by mode, context and number of the depth.
    pub(crate) fn retrieval_of(
        found: &dyn Fn(&str, usize, usize) -> usize,
        change: fn(&mut RetrievalSpec),
    ) -> Retrieval {
        let depths = vec![0.0, 0.5, 1.0];
        let (mut specs, mut scores) = (vec![], vec![]);
        for context in [4096, 8192, 16384, 32768, 65536] {
            for mode in ["none", "ntk-by-parts"] {
                for (index, &depth) in depths.iter().enumerate() {
                    let mut spec = RetrievalSpec {
                        task: "passkey".into(),
                        context,
                        depth: Some(depth),
                        trials: 4,
                        mode: mode.into(),
                        factor: 2.0,
                        same_as: None,
                        between: false,
                    };
                    change(&mut spec);
                    let answers = vec![Bucket { sum: 2.5, tokens: 5 }; 4];
                    let found = found(mode, context, index);
                    scores.push(Some(RetrievalScores { found, wanted: 4, answers, seconds: 1.0 }));
                    specs.push(spec);
                }
            }
        }
        let mut about = tests_about();
        about.settings.rope.original_context = Some(4096);
        let tasks = vec!["passkey".to_string()];
        about.settings.retrieval =
            Some(RetrievalSettings { tasks, haystack: None, depths, trials: 4, skipped: vec![] });
        summarise(&specs, &scores, &about).unwrap()
    }

    /// Without scaling everything is found up to 4096 tokens and nothing further on, under the other mode half of it.
    pub(crate) fn retrieval() -> Retrieval {
        retrieval_of(
            &|mode, context, depth| match (mode, context) {
                ("none", 4096) => 4,
                ("none", _) => 0,
                _ => 2 * depth,
            },
            |_| (),
        )
    }

    #[test]
    fn every_figure_is_there_in_any_width() {
        for width in [20, 40, 100] {
            let text = heat(&retrieval(), TableStyle { width, color: false });
            assert!(text.lines().all(|line| line.chars().count() <= width), "{width}\n{text}");
            assert!(!text.contains('\x1b'));
            let figures = |n: &str| text.split_whitespace().filter(|word| *word == n).count();
            // Of the one, three depths and all at the first context; of the other, depth 1 at every context.
            assert_eq!((figures("100"), figures("0") > 20), (4 + 5, true), "{text}");
            assert_eq!(figures("50"), 10, "{text}");
        }
        let short = found(&retrieval(), TableStyle { width: 60, color: false });
        let line = |mode: &str| short.lines().find(|line| line.trim_start().starts_with(mode)).unwrap();
        assert!(line("none").ends_with("100      0      0      0      0"), "{short}");
        assert!(line("ntk-by-parts").ends_with("50     50     50     50     50"), "{short}");
        for width in [22, 40] {
            let text = found(&retrieval(), TableStyle { width, color: false });
            assert!(text.lines().all(|line| line.chars().count() <= width), "{width}\n{text}");
        }
    }

    #[test]
    fn colour_changes_no_column() {
        for show in [heat, found] {
            let plain = show(&retrieval(), TableStyle { width: 80, color: false });
            let mut colored = show(&retrieval(), TableStyle { width: 80, color: true });
            for step in [210, 216, 222, 186, 120] {
                colored = colored.replace(&format!("\x1b[30;48;5;{step}m"), "");
            }
            assert_eq!(colored.replace(RESET, ""), plain);
        }
    }
}
