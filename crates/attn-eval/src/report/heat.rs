//! Retrieval for a terminal: as heat maps, one per task and mode, with a row per depth and a column per context; and in short
//! form, one table per task with a row per mode: what was found, and what the right answers cost.
//!
//! Colour only repeats what the numbers say, so nothing is lost without it.

use super::TableStyle;
use super::blocks::fill;
use crate::retrieval::{Retrieval, Share};
use std::fmt;
use std::str::FromStr;

/// The figure of retrieval that is shown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum RetrievalMetric {
    /// The share of the hidden things that was found.
    #[default]
    Found,
    /// What a token of the right answer cost, in nats; it shows differences between modes even if none of them finds anything.
    AnswerNll,
}

impl RetrievalMetric {
    /// All figures.
    pub const ALL: [Self; 2] = [Self::Found, Self::AnswerNll];

    /// The name on the command line, and in JSON and CSV.
    pub fn name(self) -> &'static str {
        match self {
            Self::Found => "found",
            Self::AnswerNll => "answer_nll",
        }
    }

    /// What the figures are, for people.
    pub(super) fn legend(self) -> &'static str {
        match self {
            Self::Found => "% found",
            Self::AnswerNll => "nats per token of the right answer (answer_nll)",
        }
    }

    /// The figure of a task under a mode at a context, at one depth or at all, and how good it is, from 0 to 1.
    pub(super) fn figure(
        self,
        retrieval: &Retrieval,
        (task, mode): (&str, &str),
        context: usize,
        depth: Option<f64>,
    ) -> Option<(f64, f64)> {
        match self {
            Self::Found => retrieval.share(task, mode, context, depth).map(Share::value).map(|share| (share, share)),
            // The mean probability of a token of the answer.
            Self::AnswerNll => retrieval.answer_nll(task, mode, context, depth).map(|nats| (nats, (-nats).exp())),
        }
    }

    /// The text of a figure.
    pub(super) fn shown(self, figure: f64) -> String {
        match self {
            Self::Found => format!("{:.0}", figure * 100.0),
            Self::AnswerNll if figure.abs() < 99.995 => format!("{figure:.2}"),
            Self::AnswerNll => format!("{figure:.0}"),
        }
    }
}

impl fmt::Display for RetrievalMetric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for RetrievalMetric {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|metric| metric.name() == text);
        found.ok_or_else(|| format!("known: {}", Self::ALL.map(Self::name).join(", ")))
    }
}

/// Columns of the terminal for a label and for a figure.
const LABEL: usize = 12;
const CELL: usize = 7;
const RESET: &str = "\x1b[0m";

/// How many columns of `CELL` fit beside labels of `label` columns.
fn across(width: usize, label: usize) -> usize {
    ((width.max(label + CELL) - label) / CELL).max(1)
}

/// The heat maps, each line ending in a newline.
pub fn heat(retrieval: &Retrieval, metric: RetrievalMetric, style: TableStyle) -> String {
    let mut out = String::new();
    for task in &retrieval.tasks {
        out.push_str(&fill(&format!("{}: {}", task.name, task.summary), style.width, ""));
        out.push_str("\n\n");
        for mode in &retrieval.modes {
            for contexts in retrieval.contexts.chunks(across(style.width, LABEL)) {
                map(&mut out, retrieval, metric, (&task.name, mode), contexts, style.color);
                out.push('\n');
            }
        }
    }
    let legend = format!(
        "{} in {} trials per depth; depth: place in the text, 0% its beginning, 100% its end",
        metric.legend(),
        retrieval.trials
    );
    out.push_str(&fill(&legend, style.width, ""));
    out.push('\n');
    out
}

/// What was found at all depths together, each line ending in a newline.
pub fn found(retrieval: &Retrieval, style: TableStyle) -> String {
    let legend = format!("% found of what is hidden, by tokens of the prompt, in {}", retrieval.haystack);
    together(retrieval, RetrievalMetric::Found, &legend, style)
}

/// What the right answers cost at all depths together, each line ending in a newline.
pub fn answers(retrieval: &Retrieval, style: TableStyle) -> String {
    let legend = format!("{}; lower is better, also where no mode finds anything", RetrievalMetric::AnswerNll.legend());
    together(retrieval, RetrievalMetric::AnswerNll, &legend, style)
}

fn together(retrieval: &Retrieval, metric: RetrievalMetric, legend: &str, style: TableStyle) -> String {
    let label = retrieval.modes.iter().chain(retrieval.tasks.iter().map(|task| &task.name)).map(|name| name.len() + 2);
    let label = label.max().unwrap_or(0).max(LABEL);
    let mut out = String::new();
    for task in &retrieval.tasks {
        for contexts in retrieval.contexts.chunks(across(style.width, label)) {
            head(&mut out, &task.name, label, contexts);
            for mode in &retrieval.modes {
                let figure = |context: usize| metric.figure(retrieval, (&task.name, mode), context, None);
                row(&mut out, &format!("  {mode}"), label, (metric, contexts), &figure, style.color);
            }
        }
    }
    out.push_str(&fill(legend, style.width, ""));
    out.push('\n');
    out
}

fn map(
    out: &mut String,
    retrieval: &Retrieval,
    metric: RetrievalMetric,
    (task, mode): (&str, &str),
    contexts: &[usize],
    color: bool,
) {
    head(out, mode, LABEL, contexts);
    let figure = |depth: Option<f64>| move |context: usize| metric.figure(retrieval, (task, mode), context, depth);
    let asked = |depth: &&f64| contexts.iter().any(|&context| figure(Some(**depth))(context).is_some());
    for &depth in retrieval.depths.iter().filter(asked) {
        row(out, &format!("depth {:>3.0}%", depth * 100.0), LABEL, (metric, contexts), &figure(Some(depth)), color);
    }
    row(out, "all", LABEL, (metric, contexts), &figure(None), color);
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
    (metric, contexts): (RetrievalMetric, &[usize]),
    of: &dyn Fn(usize) -> Option<(f64, f64)>,
    color: bool,
) {
    out.push_str(&format!("{name:<label$}"));
    contexts.iter().for_each(|&context| out.push_str(&figure(metric, of(context), color)));
    out.push('\n');
}

/// A figure on a background between red and green.
fn figure(metric: RetrievalMetric, found: Option<(f64, f64)>, color: bool) -> String {
    /// Five colours of the 256-colour palette from red to green, on which black text is readable.
    const STEPS: [u8; 5] = [210, 216, 222, 186, 120];
    let Some((value, share)) = found else { return format!("{:>CELL$}", "–") };
    let text = format!("{:>width$}", metric.shown(value), width = CELL - 1);
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

    /// Passkey under two modes, at five contexts and three depths, with four trials each. `found` says in how many of them the
    /// key is found, by mode, context and number of the depth.
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

    /// Without scaling everything is found up to 4096 tokens and nothing further on; under the other mode half of it is found.
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
            let text = heat(&retrieval(), RetrievalMetric::Found, TableStyle { width, color: false });
            assert!(text.lines().all(|line| line.chars().count() <= width), "{width}\n{text}");
            assert!(!text.contains('\x1b'));
            let figures = |n: &str| text.split_whitespace().filter(|word| *word == n).count();
            // 100 is shown for the first mode at the first context, at three depths and for all; for the second at the last depth.
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

    /// Four answers of five tokens cost 2.5 nats each, under every mode and at every depth.
    #[test]
    fn what_answers_cost_is_shown_beside_what_is_found() {
        for width in [22, 60] {
            let style = TableStyle { width, color: false };
            for text in [answers(&retrieval(), style), heat(&retrieval(), RetrievalMetric::AnswerNll, style)] {
                assert!(text.lines().all(|line| line.chars().count() <= width), "{width}\n{text}");
                assert!(text.contains("(answer_nll)") && !text.contains("% found"), "{text}");
            }
        }
        let style = TableStyle { width: 60, color: false };
        let line =
            |text: &str, begin: &str| text.lines().find(|l| l.trim_start().starts_with(begin)).unwrap().to_string();
        assert!(line(&answers(&retrieval(), style), "none").ends_with("0.50   0.50   0.50   0.50   0.50"));
        let maps = heat(&retrieval(), RetrievalMetric::AnswerNll, style);
        assert_eq!(maps.matches("0.50").count(), 2 * 5 * (3 + 1), "{maps}");
        assert_eq!([RetrievalMetric::AnswerNll.shown(123.4), RetrievalMetric::AnswerNll.shown(9.876)], ["123", "9.88"]);
        assert_eq!("answer_nll".parse(), Ok(RetrievalMetric::AnswerNll));
        assert!("nll".parse::<RetrievalMetric>().unwrap_err().contains("found, answer_nll"));
    }

    #[test]
    fn colour_changes_no_column() {
        let maps = |retrieval: &Retrieval, style| heat(retrieval, RetrievalMetric::Found, style);
        let costs = |retrieval: &Retrieval, style| heat(retrieval, RetrievalMetric::AnswerNll, style);
        type Show<'a> = &'a dyn Fn(&Retrieval, TableStyle) -> String;
        for show in [&maps as Show, &costs, &found, &answers] {
            let plain = show(&retrieval(), TableStyle { width: 80, color: false });
            let mut colored = show(&retrieval(), TableStyle { width: 80, color: true });
            for step in [210, 216, 222, 186, 120] {
                colored = colored.replace(&format!("\x1b[30;48;5;{step}m"), "");
            }
            assert_eq!(colored.replace(RESET, ""), plain);
        }
    }
}
