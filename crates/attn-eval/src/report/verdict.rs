//! The verdict of a comparison in sentences: what to do past the trained length, what that costs, and for each length the best
//! mode and whether its lead is significant. Ranges in brackets are 95 % intervals.

use super::words::{called, finder, listed};
use super::{figure, gap, short, weighed};
use crate::compare::{
    Answer, MetricDifference, Pair, Recommendation, Results, Versus, best, contexts, far_text, takes_factor,
};
use crate::perplexity::Cell;
use crate::search::Search;
use crate::stats::{Difference, Interval, MIN_WINDOWS};

/// The verdict of a comparison.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// What to do past the trained length.
    pub headline: String,
    /// What that costs, the best setting that a config can express, what retrieval found, and what far text is worth.
    pub lines: Vec<String>,
    /// A line per length: the best mode, by how much it leads, and whether that is significant.
    pub lengths: Vec<String>,
}

/// The verdict on the results of a model that was trained for `trained` tokens; `one_factor` as in
/// [`recommend`](crate::compare::recommend).
pub fn verdict(results: &Results, one_factor: bool, trained: Option<usize>) -> Verdict {
    let Some(found) = results.recommended(one_factor, trained) else {
        return Verdict { headline: "Nothing was compared.".to_string(), lines: vec![], lengths: vec![] };
    };
    let lines = [cost(&found), for_configs(&found)].into_iter().flatten();
    let lines = lines.chain(weighed::sentences(results, &found)).chain(far_sentence(results)).collect();
    let lengths = contexts(&results.cells).into_iter().filter_map(|context| line(&results.cells, context)).collect();
    Verdict { headline: headline(&found, trained), lines, lengths }
}

/// A mode with its factor, if it has one for all lengths.
fn setting(mode: &str, factor: Option<f64>) -> String {
    factor.map_or_else(|| called(mode).to_string(), |factor| format!("{mode} at factor {}", super::factor(factor)))
}

/// [`setting`] as the subject of a sentence.
fn subject(mode: &str, factor: Option<f64>) -> String {
    factor.map_or_else(|| finder(mode).to_string(), |_| setting(mode, factor))
}

/// The recommendation in one or two sentences: what to do, and which other modes are not significantly worse.
fn headline(found: &Recommendation, trained: Option<usize>) -> String {
    let (context, perplexity) = (found.context, short(found.perplexity));
    let name = setting(&found.mode, found.factor);
    let start = trained.map_or("At these lengths".to_string(), |n| format!("Beyond the trained length of {n} tokens"));
    let others: Vec<String> = found
        .baselines
        .iter()
        .filter(|other| other.is_own())
        .map(|other| match other.mode.as_str() {
            "none" => format!("without scaling {}", short(other.perplexity)),
            mode => format!("with {} {}", called(mode), short(other.perplexity)),
        })
        .collect();
    let others = if others.is_empty() { String::new() } else { format!(", {}", others.join(", ")) };
    match found.answer {
        Answer::Alone => {
            format!(
                "At {context} tokens the perplexity is {perplexity}. Only {name} was measured, so nothing is compared."
            )
        }
        Answer::Within => match trained {
            Some(n) if found.is_own() => {
                format!(
                    "Up to the trained length of {n} tokens no scaling is needed: perplexity {perplexity} at {context}."
                )
            }
            _ => format!("Of the modes compared, the best is {name}: perplexity {perplexity} at {context} tokens."),
        },
        Answer::TooLittleText => format!(
            "Too little text for a recommendation: {} of {context} tokens, but {} are needed{}. So far the best is {name}: \
             perplexity {perplexity} at {context} tokens{others}.",
            counted(found.windows, "window"),
            found.windows_needed.unwrap_or(MIN_WINDOWS),
            text_for(found)
        ),
        Answer::Undecided => {
            let more = match found.windows_needed {
                Some(n) => format!("about {n} windows would decide it{}", text_for(found)),
                None => "more text of this kind is unlikely to decide it".to_string(),
            };
            format!(
                "{start}, this text shows no significant difference between {name} and the model as it is: perplexity \
                 {perplexity} at {context} tokens{others}; {more}."
            )
        }
        Answer::Disagree => format!(
            "{start}, perplexity and retrieval disagree, so nothing is recommended. By perplexity {name} is better: {perplexity} \
             at {context} tokens{others}. By retrieval it is worse: {}",
            weighed::disagreement(found)
        ),
        Answer::Keep => {
            let finds = weighed::finds(found);
            format!("{start}, no other mode is better than {name}: perplexity {perplexity} at {context} tokens.{finds}")
        }
        Answer::Use => {
            let tied: Vec<&str> = found.tied_with.iter().map(|mode| called(mode)).collect();
            let tied = match tied.as_slice() {
                [] => String::new(),
                [one] => format!(" Its difference from {one} is not significant on this text."),
                tied => format!(" Its differences from {} are not significant on this text.", listed(tied)),
            };
            let each = if found.factor.is_none() && takes_factor(&found.mode) {
                ", with a factor for each length"
            } else {
                ""
            };
            let finds = weighed::finds(found);
            format!("{start}, use {name}{each}: perplexity {perplexity} at {context} tokens{others}.{finds}{tied}")
        }
    }
}

/// The option that gives enough text for the windows that are needed.
fn text_for(found: &Recommendation) -> String {
    found.windows_needed.map_or(String::new(), |n| format!(" (--max-tokens {})", n * found.context))
}

/// What the setting costs at the trained length.
fn cost(found: &Recommendation) -> Option<String> {
    if found.answer != Answer::Use {
        return None;
    }
    let name = subject(&found.mode, found.factor);
    let cost = found.cost_at_trained.as_ref()?;
    Some(format!("At the trained length of {} tokens {name} {}.", cost.context, costs(cost)))
}

/// `raises the perplexity by 13% (12% to 14%)`.
fn costs(cost: &Versus) -> String {
    let Some(interval) = cost.interval else {
        return format!("changes the perplexity by {}, from too few windows for an interval", gap(cost.nll));
    };
    let range = range(interval);
    match interval {
        Interval { low, .. } if low > 0.0 => format!("raises the perplexity by {} {range}", percent(cost.nll)),
        Interval { high, .. } if high < 0.0 => format!("lowers the perplexity by {} {range}", percent(-cost.nll)),
        _ => "does not change the perplexity significantly".to_string(),
    }
}

/// The best setting for a config, if a config can't express the recommended mode.
fn for_configs(found: &Recommendation) -> Option<String> {
    let said_there = |mode: &str| found.for_configs.iter().any(|config| config.mode == mode);
    let best = found.for_configs.first().filter(|_| !said_there(&found.mode))?;
    let cost = best.cost_at_trained.as_ref();
    let cost = cost.map_or(String::new(), |cost| format!("; at {} tokens it {}", cost.context, costs(cost)));
    Some(format!(
        "A model's config can't express {}: this program and its library apply it. The best mode that a config can \
         express is {}: perplexity {} at {} tokens{cost}.",
        found.mode,
        setting(&best.mode, best.factor),
        short(best.perplexity),
        found.context
    ))
}

/// Whether text further back than a window helped at the longest context; `None` if no mode that drops it was measured.
fn far_sentence(results: &Results) -> Option<String> {
    let (versus, keeping) = far_text(results)?;
    let (keeping, dropping, context) = (finder(&keeping), &versus.mode, versus.context);
    let interval = versus.interval?;
    let gap = percent(versus.nll.abs());
    let shown = if results.retrieval.is_some() {
        ""
    } else {
        " To measure whether a mode can use them, add --tasks ppl,retrieval."
    };
    Some(if interval.low > 0.0 {
        format!(
            "On this text no mode gains from distant tokens: at {context} tokens {keeping}, the best mode that keeps them, \
             has a perplexity {gap} {} higher than {dropping}, which drops them.{shown}",
            range(interval)
        )
    } else if interval.high < 0.0 {
        let interval = Interval { low: -interval.high, high: -interval.low };
        format!(
            "On this text distant tokens help: at {context} tokens {dropping}, which drops them, has a perplexity {gap} {} \
             higher than {keeping}.",
            range(interval)
        )
    } else {
        format!(
            "On this text distant tokens help too little to measure: at {context} tokens {dropping}, which drops them, is \
             not significantly different from {keeping}."
        )
    })
}

/// A sentence that says whether the search found something better than the stock modes.
pub fn search_sentence(search: &Search) -> String {
    let stock = called(&search.stock.mode);
    let Pair { nll, interval, longppl, kl, .. } = search.difference;
    if search.winner.cell.nll == search.stock.nll {
        return format!("The search found nothing better than {stock}.");
    }
    let of = |metric: Option<MetricDifference>| metric.map_or((f64::NAN, None), |metric| (metric.nll, metric.interval));
    let (name, (nll, interval)) = match search.objective {
        "longppl" => ("LongPPL", of(longppl)),
        "kl" => ("divergence", of(kl)),
        _ => ("perplexity", (nll, interval)),
    };
    // A divergence is a number of nats, and not the logarithm of a ratio that could be given in percent.
    let nats = search.objective == "kl";
    let gap = if nats { format!("{nll:+.4} nats per token") } else { percent(nll) };
    let Some(interval) = interval else {
        return format!(
            "The scaling found differs from {stock} by {gap} in {name}, from too few windows for an interval."
        );
    };
    let Interval { low, high } = interval;
    let range = if nats { format!("[{low:+.4}, {high:+.4}]") } else { range(interval) };
    if high < 0.0 {
        format!("The scaling found is better than {stock}, the best mode without search: {name} {gap} {range}.")
    } else {
        format!(
            "The scaling found is not significantly better than {stock}, the best mode without search: {name} {gap} \
             {range}."
        )
    }
}

fn counted(n: usize, what: &str) -> String {
    if n == 1 { format!("1 {what}") } else { format!("{n} {what}s") }
}

fn line(cells: &[Cell], context: usize) -> Option<String> {
    let winner = best(cells, context)?;
    let mut others: Vec<&Cell> = cells
        .iter()
        .filter(|cell| cell.context == context && cell.mode != winner.mode && !same(cell, winner))
        .collect();
    others.sort_by(|a, b| a.nll.total_cmp(&b.nll));
    let (mode, perplexity) = (finder(&winner.mode), figure(winner));
    let Some((next, difference)) = others.first().and_then(|next| Some((next, next.versus_best.as_ref()?))) else {
        let alone = cells.iter().filter(|cell| cell.context == context).count() == 1;
        let all = if alone {
            format!("{mode} has a perplexity of")
        } else {
            "all modes have the same perplexity,".to_string()
        };
        return Some(format!("{context}: {all} {perplexity}"));
    };
    let (name, gap) = (called(&next.mode), percent(difference.nll));
    let (Some(low), Some(high)) = (difference.low, difference.high) else {
        let few = format!("only {} of the {MIN_WINDOWS} windows that an interval needs", winner.windows);
        return Some(format!("{context}: lowest for {mode} ({perplexity}), next is {name}, {gap} higher; {few}"));
    };
    let range = range(Interval { low, high });
    if difference.is_real() == Some(true) {
        return Some(format!("{context}: lowest for {mode} ({perplexity}), next is {name}, {gap} higher {range}"));
    }
    let tied = others.iter().filter(|cell| cell.versus_best.as_ref().and_then(Difference::is_real) == Some(false));
    let names: Vec<&str> = tied.map(|cell| called(&cell.mode)).collect();
    let names = if names.len() > 3 { format!("{} others", names.len()) } else { listed(&names) };
    Some(format!(
        "{context}: lowest for {mode} ({perplexity}), not significantly lower than {names}: {name} is {gap} higher {range}"
    ))
}

/// Whether the two cells are one computation.
fn same(a: &Cell, b: &Cell) -> bool {
    let base = |cell: &Cell| cell.same_as.clone().unwrap_or_else(|| cell.mode.clone());
    base(a) == base(b)
}

/// The 95 % interval of a difference.
fn range(Interval { low, high }: Interval) -> String {
    format!("({} to {})", percent(low), percent(high))
}

/// A difference in nats as a ratio of perplexities, without a plus sign: the sentence around it says the direction.
fn percent(nll: f64) -> String {
    gap(nll).trim_start_matches('+').to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::results::tests::cells;

    fn results(rows: &[(&str, usize, f32)]) -> Results {
        Results::of(cells(rows), 0)
    }

    fn said(rows: &[(&str, usize, f32)]) -> Verdict {
        verdict(&results(rows), true, Some(256))
    }

    #[test]
    fn a_real_lead_is_given_with_its_interval() {
        let lines = said(&[("none", 256, 3.2), ("yarn", 256, 3.0), ("linear", 256, 3.1)]).lengths;
        assert_eq!(lines.len(), 1);
        assert!(lines[0].starts_with("256: lowest for yarn (20"), "{}", lines[0]);
        assert!(lines[0].contains("), next is linear, 11% higher (11% to 11%)"), "{}", lines[0]);
    }

    #[test]
    fn the_headline_says_what_to_use_and_what_that_costs() {
        let rows = [("none", 256, 3.0), ("yarn", 256, 3.1), ("none", 512, 3.6), ("yarn", 512, 3.2)];
        let Verdict { headline, lines, .. } = said(&rows);
        let wanted = "Beyond the trained length of 256 tokens, use yarn at factor 2: perplexity 24.9";
        assert!(headline.starts_with(wanted) && headline.contains(" at 512 tokens, without scaling 3"), "{headline}");
        let wanted = "At the trained length of 256 tokens yarn at factor 2 raises the perplexity by 11% (11% to 11%).";
        assert_eq!(lines[0], wanted);
        let per_length = verdict(&results(&rows), false, Some(256));
        assert!(per_length.headline.contains("use yarn, with a factor for each length"), "{}", per_length.headline);
        assert!(per_length.lines.iter().all(|line| !line.contains("raises")));
    }

    #[test]
    fn ties_and_few_windows_recommend_nothing() {
        let few = said(&[("none", 2048, 3.2), ("yarn", 2048, 3.0)]);
        let wanted =
            "Too little text for a recommendation: 2 windows of 2048 tokens, but 4 are needed (--max-tokens 8192).";
        assert!(few.headline.starts_with(wanted) && few.headline.contains("the best is yarn"), "{}", few.headline);
        assert!(few.lengths[0].contains("2 of the 4 windows"), "{:?}", few.lengths);
        let mut tied = results(&[("none", 512, 3.01), ("yarn", 512, 3.0)]);
        tied.differences[0].interval = Some(Interval { low: -0.01, high: 0.03 });
        tied.cells[0].versus_best =
            Some(Difference { mode: "yarn".into(), nll: 0.01, low: Some(-0.01), high: Some(0.03) });
        let said = verdict(&tied, true, Some(256));
        assert!(
            said.headline.contains("no significant difference between yarn at factor 2 and the model"),
            "{}",
            said.headline
        );
        assert!(said.headline.contains("windows would decide it (--max-tokens"), "{}", said.headline);
        let line = "not significantly lower than no scaling: no scaling is 1.0% higher (-1.0% to 3.0%)";
        assert!(said.lengths[0].contains(line), "{:?}", said.lengths);
    }

    #[test]
    fn the_other_answers() {
        let within = said(&[("none", 256, 3.0), ("yarn", 256, 3.1)]).headline;
        assert!(within.starts_with("Up to the trained length of 256 tokens no scaling is needed"), "{within}");
        assert_eq!(verdict(&Results::default(), true, Some(256)).headline, "Nothing was compared.");
        let alone = said(&[("checkpoint", 512, 3.0)]).headline;
        assert!(alone.ends_with("Only the checkpoint's own scaling was measured, so nothing is compared."), "{alone}");
        let keep = said(&[("none", 512, 3.0), ("yarn", 512, 3.2)]).headline;
        assert!(keep.contains("no other mode is better than no scaling"), "{keep}");
    }

    #[test]
    fn a_method_comes_with_what_a_config_can_say_and_with_what_the_far_text_is_worth() {
        let rows = [("none", 256, 3.0), ("yarn", 256, 3.1), ("rerope", 256, 3.0), ("streaming", 256, 3.0)];
        let past = [("none", 512, 4.0), ("yarn", 512, 3.3), ("rerope", 512, 3.1), ("streaming", 512, 3.0)];
        let Verdict { headline, lines, .. } = said(&[rows, past].concat());
        assert!(headline.contains("use rerope: perplexity"), "{headline}");
        assert!(
            lines[1].contains("express is yarn at factor 2: perplexity 2")
                && lines[1].contains("raises the perplexity by 11%"),
            "{lines:?}"
        );
        assert!(
            lines[2].starts_with("On this text no mode gains from distant tokens: at 512 tokens rerope"),
            "{lines:?}"
        );
        let mut tied = results(&past);
        for pair in &mut tied.differences {
            pair.interval = Some(Interval { low: pair.nll - 0.2, high: pair.nll + 0.2 });
        }
        let lines = verdict(&tied, true, Some(256)).lines;
        assert!(lines.iter().any(|line| line.contains("not significantly different from rerope")), "{lines:?}");
    }

    #[test]
    fn identical_modes_are_said_to_be_identical() {
        let mut same = results(&[("none", 256, 3.0), ("yarn", 256, 3.0)]);
        same.cells[1].same_as = Some("none".into());
        assert!(verdict(&same, true, Some(256)).lengths[0].starts_with("256: all modes have the same perplexity, 20"));
        assert!(said(&[("none", 256, 3.0)]).lengths[0].starts_with("256: the model without scaling has"));
    }
}
