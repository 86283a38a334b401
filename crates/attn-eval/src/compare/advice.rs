//! What a comparison recommends: one setting for every length past the trained one, what it costs at the trained length, and
//! whether there was enough text to decide.
//!
//! A setting is judged by the length at which it loses most against the best mode of that length. The trained length counts too,
//! since a model that is served for long texts is served for short ones as well. A setting is recommended only if it is
//! significantly better than the model as it is, that is if the 95 % interval of the difference on the same windows does not
//! contain zero. Where retrieval was measured, it is weighed too ([`weigh`](super::weigh)). Modes that never see what lies further
//! back than a window are not recommended if there are others, because perplexity hardly shows what they lose. They serve
//! as a baseline instead.

use super::usable::usable;
use super::{Mode, Pair, Results, Usable, Weighed, contexts, find, modes};
use crate::perplexity::Cell;
use crate::stats::{Interval, MIN_WINDOWS};
use serde::{Deserialize, Serialize};

/// Which kind of answer a comparison gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// A setting is significantly better than the model as it is.
    Use,
    /// Nothing that was compared is better than the model as it is.
    Keep,
    /// The best setting is not significantly different from the model as it is.
    Undecided,
    /// What is better by perplexity is worse by retrieval.
    Disagree,
    /// Too few windows for any interval.
    TooLittleText,
    /// No length is past the trained one.
    Within,
    /// One mode alone was measured.
    Alone,
}

/// The recommended mode beside another one, at one length.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Versus {
    /// The other mode.
    pub mode: String,
    /// Tokens per window.
    pub context: usize,
    /// The other mode's perplexity; infinite where it is too large for an `f64`, and null in JSON.
    #[serde(with = "crate::exact::or_too_large")]
    pub perplexity: f64,
    /// By how much the recommended mode's mean negative log-likelihood exceeds the other's, in nats per token.
    pub nll: f64,
    /// Its 95 % interval; absent with too few windows.
    pub interval: Option<Interval>,
}

/// A setting that a model's config can express.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ForConfigs {
    /// The mode.
    pub mode: String,
    /// Its factor, as [`Recommendation::factor`].
    pub factor: Option<f64>,
    /// Its perplexity at the longest length; as in [`Versus`].
    #[serde(with = "crate::exact::or_too_large")]
    pub perplexity: f64,
    /// What it costs at the trained length, against the model as it is.
    pub cost_at_trained: Option<Versus>,
}

/// The options with which a program uses a setting.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Applied {
    /// The setting.
    pub mode: String,
    /// The program.
    pub program: String,
    /// Its options; or, after a `#`, why there are none.
    pub options: String,
}

/// What a comparison recommends.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Recommendation {
    /// The kind of answer.
    pub answer: Answer,
    /// The setting: the one to use, else the best of those compared.
    pub mode: String,
    /// Its factor, if it takes one that is the same at all lengths.
    pub factor: Option<f64>,
    /// The longest length compared.
    pub context: usize,
    /// The setting's perplexity there; as in [`Versus`].
    #[serde(with = "crate::exact::or_too_large")]
    pub perplexity: f64,
    /// Windows of that length.
    pub windows: usize,
    /// How many would probably be enough to decide, if these were too few.
    pub windows_needed: Option<usize>,
    /// Modes that the setting does not significantly beat at the trained length or any length past it.
    pub tied_with: Vec<String>,
    /// The setting against the model as it is, the model without scaling and the best mode that drops far text, at the longest
    /// length.
    pub baselines: Vec<Versus>,
    /// What the setting costs at the trained length, against the model as it is.
    pub cost_at_trained: Option<Versus>,
    /// If a setting is recommended: the settings that a model's config can express and that are significantly better than the
    /// model as it is at the longest length, best first.
    pub for_configs: Vec<ForConfigs>,
    /// The usable length of each mode.
    pub usable: Vec<Usable>,
    /// What retrieval says, where it was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retrieval: Option<Weighed>,
    /// The options of this and other programs; empty where the model was not at hand.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub applied: Vec<Applied>,
}

/// The modes that are the model as it is: its config's own scaling, and none.
pub(super) const OWN: [&str; 2] = ["checkpoint", "none"];

impl Versus {
    /// Whether the other mode is the model as it is, or the model without its scaling.
    pub(crate) fn is_own(&self) -> bool {
        OWN.contains(&self.mode.as_str())
    }
}

impl Recommendation {
    /// Whether the setting is the model as it is, or the model without its scaling.
    pub(crate) fn is_own(&self) -> bool {
        OWN.contains(&self.mode.as_str())
    }
}

/// What the cells of a comparison recommend; `None` if there are none. `one_factor` says that a mode has the same factor at all
/// lengths, and so is one setting. `trained` is the trained context, if it is known.
pub fn recommend(results: &Results, one_factor: bool, trained: Option<usize>) -> Option<Recommendation> {
    Table { results, cells: &results.cells, pairs: &results.differences, one_factor, trained }.recommend()
}

pub(super) struct Table<'a> {
    pub(super) results: &'a Results,
    cells: &'a [Cell],
    pairs: &'a [Pair],
    one_factor: bool,
    pub(super) trained: Option<usize>,
}

impl<'a> Table<'a> {
    fn recommend(&self) -> Option<Recommendation> {
        let mut past = contexts(self.cells);
        past.sort_unstable();
        let longest = *past.last()?;
        past.retain(|&context| self.trained.is_none_or(|trained| context > trained));
        let within = past.is_empty();
        if within {
            past.push(longest);
        } else if self.one_factor {
            past.extend(self.trained.filter(|&trained| contexts(self.cells).contains(&trained)));
        }
        let by_regret = self.by_regret(&self.candidates(&past), &past);
        let leader = *by_regret.first()?;
        let tied: Vec<&str> = by_regret[1..].iter().copied().filter(|m| !self.beaten(m, leader, &past)).collect();
        let (mut answer, mut mode) = (self.answer(leader, &tied, longest, within), leader);
        if answer == Answer::Use {
            // Of settings that are equally good, one that a config can express, so that every program can use it.
            mode = std::iter::once(leader).chain(tied.iter().copied()).find(|m| in_configs(m)).unwrap_or(leader);
        } else if within && self.baseline().is_some_and(|own| own == leader || tied.contains(&own)) {
            mode = self.baseline().unwrap_or(leader);
        }
        if modes(self.cells).len() == 1 {
            answer = Answer::Alone;
        }
        let mut others = vec![leader];
        others.extend(tied);
        let mut settings: Vec<&str> = by_regret.iter().copied().filter(|m| self.beats_baseline(m, longest)).collect();
        let mut retrieval = self.weighed(mode);
        if let Some(chosen) = self.chosen_with_retrieval(&by_regret, answer, &past) {
            (answer, others, settings) = (chosen.answer, chosen.tied, chosen.settings);
            // As above, of settings that are equally good one that a config can express.
            let all = || std::iter::once(chosen.mode).chain(others.iter().copied());
            mode = all().find(|mode| in_configs(mode)).unwrap_or(chosen.mode);
            others.push(chosen.mode);
            retrieval = self.weighed(mode).map(|weighed| Weighed {
                instead_of: (leader != mode && !others.contains(&leader)).then(|| leader.to_string()),
                ..weighed
            });
        }
        others.retain(|other| *other != mode && !self.same(other, mode, longest));
        let cell = self.cell(mode, longest)?;
        Some(Recommendation {
            answer,
            mode: mode.to_string(),
            factor: self.factor(mode, longest),
            context: longest,
            perplexity: cell.perplexity,
            windows: cell.windows,
            windows_needed: self.needed(answer, leader, longest),
            tied_with: others.into_iter().map(str::to_string).collect(),
            baselines: self.baselines(mode, longest),
            cost_at_trained: self.cost(mode),
            for_configs: if answer == Answer::Use { self.for_configs(&settings, &past) } else { vec![] },
            usable: usable(self.results, self.one_factor, self.trained),
            retrieval,
            applied: vec![],
        })
    }

    fn cell(&self, mode: &str, context: usize) -> Option<&'a Cell> {
        find(self.cells, context, mode)
    }

    /// The modes that were measured at each of the lengths; without those that drop far text, unless nothing else can be
    /// recommended.
    fn candidates(&self, past: &[usize]) -> Vec<&'a str> {
        let everywhere = |mode: &&str| past.iter().all(|&context| self.cell(mode, context).is_some());
        let all: Vec<&str> = modes(self.cells).into_iter().filter(everywhere).collect();
        let keep: Vec<&str> = all.iter().copied().filter(|mode| !drops_keys(mode)).collect();
        let something = keep.iter().any(|mode| Some(*mode) != self.baseline());
        if something || all.len() == keep.len() { keep } else { all }
    }

    /// The candidates, the one that loses least at its worst length first.
    pub(super) fn by_regret(&self, candidates: &[&'a str], lengths: &[usize]) -> Vec<&'a str> {
        let regret = |mode: &&'a str| (self.regret(mode, candidates, lengths), *mode);
        let mut all: Vec<(f64, &str)> = candidates.iter().map(regret).collect();
        all.sort_by(|a, b| a.0.total_cmp(&b.0));
        all.into_iter().map(|(_, mode)| mode).collect()
    }

    /// What a mode loses against the best candidate at its worst length, in nats.
    fn regret(&self, mode: &str, candidates: &[&str], past: &[usize]) -> f64 {
        let loss = |context: usize| {
            let nll = |mode: &str| self.cell(mode, context).map_or(f64::INFINITY, |cell| cell.nll);
            nll(mode) - candidates.iter().map(|mode| nll(mode)).fold(f64::INFINITY, f64::min)
        };
        past.iter().map(|&context| loss(context)).fold(0.0, f64::max)
    }

    /// The model as it is: its config's own scaling, else none.
    pub(super) fn baseline(&self) -> Option<&'a str> {
        let all = modes(self.cells);
        OWN.into_iter().find_map(|own| all.iter().copied().find(|mode| *mode == own))
    }

    /// By how much `a` exceeds `b`.
    pub(super) fn versus(&self, a: &str, b: &str, context: usize) -> Option<Versus> {
        let perplexity = self.cell(b, context)?.perplexity;
        let found = self.pairs.iter().filter(|pair| pair.context == context).find_map(|pair| {
            match (pair.mode.as_str(), pair.versus.as_str()) {
                (x, y) if (x, y) == (a, b) => Some((pair.nll, pair.interval)),
                (x, y) if (x, y) == (b, a) => {
                    Some((-pair.nll, pair.interval.map(|i| Interval { low: -i.high, high: -i.low })))
                }
                _ => None,
            }
        });
        let (nll, interval) = found?;
        Some(Versus { mode: b.to_string(), context, perplexity, nll, interval })
    }

    /// Whether `leader` is significantly better than `mode` at one of the lengths.
    pub(super) fn beaten(&self, mode: &str, leader: &str, past: &[usize]) -> bool {
        let really = |context: usize| self.versus(mode, leader, context)?.interval.map(|i| i.low > 0.0);
        past.iter().any(|&context| really(context) == Some(true))
    }

    pub(super) fn beats_baseline(&self, mode: &str, context: usize) -> bool {
        let Some(own) = self.baseline() else { return true };
        self.versus(mode, own, context).and_then(|v| v.interval).is_some_and(|i| i.high < 0.0)
    }

    /// Whether the two are one computation.
    fn same(&self, a: &str, b: &str, context: usize) -> bool {
        let base = |mode: &str| self.cell(mode, context).and_then(|cell| cell.same_as.clone());
        let (of_a, of_b) = (base(a), base(b));
        of_a.as_deref() == Some(b) || of_b.as_deref() == Some(a) || (of_a.is_some() && of_a == of_b)
    }

    fn factor(&self, mode: &str, context: usize) -> Option<f64> {
        let cell = self.cell(mode, context).filter(|_| self.one_factor && takes_factor(mode))?;
        Some(cell.factor)
    }

    fn for_configs(&self, candidates: &[&'a str], lengths: &[usize]) -> Vec<ForConfigs> {
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let expressible: Vec<&str> = candidates.iter().copied().filter(|mode| in_configs(mode)).collect();
        let good = self.by_regret(&expressible, lengths).into_iter();
        let of = |mode: &str| {
            Some(ForConfigs {
                mode: mode.to_string(),
                factor: self.factor(mode, longest),
                perplexity: self.cell(mode, longest)?.perplexity,
                cost_at_trained: self.cost(mode),
            })
        };
        good.filter_map(of).collect()
    }

    fn answer(&self, leader: &str, tied: &[&str], longest: usize, within: bool) -> Answer {
        let measured = self.cell(leader, longest).map_or(0, |cell| cell.windows);
        match self.baseline() {
            _ if within => Answer::Within,
            _ if measured < MIN_WINDOWS => Answer::TooLittleText,
            Some(own) if own == leader => Answer::Keep,
            Some(own) if tied.contains(&own) => Answer::Undecided,
            _ => Answer::Use,
        }
    }

    /// The number of windows that would probably decide, given that an interval narrows with the square root of their number.
    fn needed(&self, answer: Answer, leader: &str, longest: usize) -> Option<usize> {
        match answer {
            Answer::TooLittleText => Some(MIN_WINDOWS),
            Answer::Undecided => {
                let versus = self.versus(self.baseline()?, leader, longest)?;
                let (windows, interval) = (self.cell(leader, longest)?.windows, versus.interval?);
                let times = ((versus.nll - interval.low) / versus.nll).powi(2);
                // A number as large as this would not help the user, so none is given.
                let needed = windows as f64 * times;
                (needed.is_finite() && needed < 1e5).then(|| (needed.ceil() as usize).max(windows + 1))
            }
            _ => None,
        }
    }

    fn baselines(&self, mode: &str, longest: usize) -> Vec<Versus> {
        let all = modes(self.cells);
        let dropping = all.iter().copied().filter(|other| drops_keys(other));
        let nll = |mode: &str| self.cell(mode, longest).map_or(f64::INFINITY, |cell| cell.nll);
        let dropping = dropping.min_by(|a, b| nll(a).total_cmp(&nll(b)));
        let of_all = OWN.into_iter().filter(|own| all.contains(own)).chain(dropping);
        of_all.filter(|other| *other != mode).filter_map(|other| self.versus(mode, other, longest)).collect()
    }

    fn cost(&self, mode: &str) -> Option<Versus> {
        let own = self.baseline().filter(|own| self.one_factor && *own != mode)?;
        self.versus(mode, own, self.trained?)
    }
}

fn parsed(mode: &str) -> Option<Mode> {
    mode.parse().ok()
}

fn drops_keys(mode: &str) -> bool {
    parsed(mode).is_some_and(Mode::drops_keys)
}

/// Whether the frequencies of the mode of this name depend on a factor.
pub(crate) fn takes_factor(mode: &str) -> bool {
    parsed(mode).is_some_and(Mode::takes_factor)
}

/// Whether a config can express the mode.
fn in_configs(mode: &str) -> bool {
    parsed(mode).is_some_and(|mode| mode.extend().is_none())
}

/// The best mode that drops far text at the longest length, with the difference of the best other mode from it, and the name of
/// that other mode. `None` unless there are both, and they are different computations.
pub(crate) fn far_text(results: &Results) -> Option<(Versus, String)> {
    let longest = contexts(&results.cells).into_iter().max()?;
    let (cells, pairs) = (&results.cells, &results.differences);
    let table = Table { results, cells, pairs, one_factor: true, trained: None };
    let of = |drops: bool| {
        let there = results.cells.iter().filter(|cell| cell.context == longest && drops_keys(&cell.mode) == drops);
        there.min_by(|a, b| a.nll.total_cmp(&b.nll)).map(|cell| cell.mode.clone())
    };
    let (keeping, dropping) = (of(false)?, of(true)?);
    if table.same(&keeping, &dropping, longest) {
        return None;
    }
    Some((table.versus(&keeping, &dropping, longest)?, keeping))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::results::tests::cells;

    fn results(rows: &[(&str, usize, f32)]) -> Results {
        Results::of(cells(rows), 0)
    }

    /// Gives every difference at one length an interval of this half width.
    fn unsure(mut results: Results, context: usize, half: f64) -> Results {
        for pair in results.differences.iter_mut().filter(|pair| pair.context == context) {
            pair.interval = Some(Interval { low: pair.nll - half, high: pair.nll + half });
        }
        results
    }

    fn advice(results: &Results) -> Recommendation {
        recommend(results, true, Some(256)).unwrap()
    }

    #[test]
    fn one_setting_for_all_lengths_is_judged_by_its_worst() {
        // ntk wins at 512, yarn at 1024; ntk loses more there than yarn at 512.
        let rows = [
            ("none", 256, 3.0),
            ("ntk", 256, 3.1),
            ("yarn", 256, 3.2),
            ("none", 512, 3.5),
            ("ntk", 512, 3.1),
            ("yarn", 512, 3.15),
            ("none", 1024, 4.0),
            ("ntk", 1024, 3.45),
            ("yarn", 1024, 3.2),
        ];
        let said = advice(&results(&rows));
        assert_eq!((said.answer, said.mode.as_str(), said.factor), (Answer::Use, "yarn", Some(2.0)));
        assert!(said.tied_with.is_empty() && said.for_configs[0].mode == "yarn" && said.windows_needed.is_none());
        let cost = said.cost_at_trained.unwrap();
        assert!((cost.nll - 0.2).abs() < 1e-6 && cost.mode == "none" && cost.interval.unwrap().low > 0.0);
        assert_eq!(said.baselines.len(), 1);
        assert!((said.baselines[0].nll + 0.8).abs() < 1e-6);
        let usable: Vec<_> = said.usable.iter().map(|u| (u.mode.as_str(), u.perplexity)).collect();
        assert_eq!(usable, [("none", Some(256)), ("ntk", None), ("yarn", None)]);
    }

    #[test]
    fn what_cannot_be_told_from_the_model_as_it_is_is_not_recommended() {
        let rows = [("none", 512, 3.02), ("yarn", 512, 3.0), ("ntk", 512, 3.3)];
        let said = advice(&unsure(results(&rows), 512, 0.04));
        assert_eq!((said.answer, said.windows), (Answer::Undecided, 8));
        // The interval has to become half as wide, which takes four times the windows.
        assert_eq!(said.windows_needed, Some(33), "one more than 32 for the rounding of the cells");
        let said = advice(&unsure(results(&rows), 512, 0.01));
        assert_eq!((said.answer, said.mode.as_str()), (Answer::Use, "yarn"));
        let own = [("checkpoint", 512, 3.0), ("none", 512, 3.4), ("yarn", 512, 3.2)];
        let said = advice(&results(&own));
        assert_eq!((said.answer, said.mode.as_str(), said.baselines.len()), (Answer::Keep, "checkpoint", 1));
    }

    #[test]
    fn few_windows_decide_nothing() {
        let said = advice(&results(&[("none", 2048, 3.5), ("yarn", 2048, 3.0)]));
        assert_eq!((said.answer, said.windows, said.windows_needed), (Answer::TooLittleText, 2, Some(MIN_WINDOWS)));
        let said = advice(&results(&[("none", 128, 3.5), ("yarn", 128, 3.6)]));
        assert_eq!((said.answer, said.mode.as_str()), (Answer::Within, "none"));
        assert_eq!(advice(&results(&[("yarn", 512, 3.0)])).answer, Answer::Alone);
        assert!(recommend(&Results::default(), true, None).is_none());
    }

    #[test]
    fn a_window_is_a_baseline_and_a_method_has_a_setting_for_configs_beside_it() {
        let rows = [
            ("none", 512, 4.0),
            ("yarn", 512, 3.3),
            ("linear", 512, 3.8),
            ("rerope", 512, 3.1),
            ("streaming", 512, 3.0),
        ];
        let found = results(&rows);
        let said = advice(&found);
        let configs: Vec<&str> = said.for_configs.iter().map(|c| c.mode.as_str()).collect();
        assert_eq!((said.mode.as_str(), configs), ("rerope", vec!["yarn", "linear"]));
        assert_eq!(said.factor, None);
        let names: Vec<&str> = said.baselines.iter().map(|v| v.mode.as_str()).collect();
        assert_eq!(names, ["none", "streaming"]);
        let (versus, keeping) = far_text(&found).unwrap();
        assert!(keeping == "rerope" && versus.mode == "streaming" && versus.interval.unwrap().low > 0.0);
        // Of two modes that do not differ significantly, the one that a config can express.
        let said = advice(&unsure(found, 512, 0.25));
        assert_eq!((said.mode.as_str(), said.tied_with.as_slice()), ("yarn", &["rerope".to_string()][..]));
        let windows = advice(&results(&[("none", 512, 4.0), ("window", 512, 3.0)]));
        assert_eq!(windows.mode, "window", "nothing else was asked for");
    }
}
