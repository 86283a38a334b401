//! Perplexity and retrieval in one verdict.
//!
//! One can't be converted into the other, so the two are not added up. A setting is recommended if it is significantly better
//! than the model as it is by one of the two and not worse by the other. If it finds significantly more, it may cost some
//! perplexity, as long as it predicts the end of the longest windows as well as the model does at its trained length. Of these
//! settings, those that find significantly less than another of them are dropped, and perplexity decides between the rest. If the
//! setting that is better by perplexity is worse by retrieval and no other setting qualifies, the answer is that the two disagree.
//!
//! Retrieval is judged by all tasks together that the model can do at its trained length, at the longest length at which they
//! were measured. A difference is significant if its 95 % interval does not contain zero.

use super::advice::{Answer, Table};
use super::usable::carries_to_the_end;
use crate::retrieval::{Retrieval, Share};
use crate::stats::Interval;
use serde::{Deserialize, Serialize};

/// What retrieval says beside perplexity.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Weighed {
    /// The length at which modes are compared.
    pub context: usize,
    /// The tasks that count: those that the model can do at its trained length.
    pub tasks: Vec<String>,
    /// What each mode finds there of all these tasks together, the best mode first; modes that are the same computation as another
    /// are left out.
    pub found: Vec<Found>,
    /// Modes that find significantly more than the recommended one.
    pub better: Vec<String>,
    /// The mode that perplexity alone would recommend, if retrieval changed the recommendation.
    pub instead_of: Option<String>,
}

/// What a mode finds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Found {
    /// The mode.
    pub mode: String,
    /// The share found, from 0 to 1.
    pub share: f64,
    /// Its 95 % interval.
    pub interval: Interval,
    /// Number of trials.
    pub trials: usize,
}

/// The choice by perplexity and retrieval together.
pub(super) struct Chosen<'a> {
    pub(super) answer: Answer,
    pub(super) mode: &'a str,
    /// Modes that it does not significantly beat by either.
    pub(super) tied: Vec<&'a str>,
    /// Modes that may be recommended.
    pub(super) settings: Vec<&'a str>,
}

/// The length at which retrieval is judged: the longest at which the model as it is was measured on all tasks that it can do.
fn judged_at(retrieval: &Retrieval) -> Option<usize> {
    let own = retrieval.own()?;
    retrieval.able().next()?;
    retrieval.contexts.iter().copied().filter(|&context| retrieval.pooled(own, context).is_some()).max()
}

/// Whether one share is significantly above another.
fn above(a: Share, b: Share) -> bool {
    a.above(b).low > 0.0
}

impl<'a> Table<'a> {
    /// What retrieval says of `mode`; `None` if it says nothing.
    pub(super) fn weighed(&self, mode: &str) -> Option<Weighed> {
        let retrieval = self.results.retrieval.as_ref()?;
        let context = judged_at(retrieval)?;
        let repeats = |other: &str| {
            let mut at = retrieval.totals.iter().filter(|total| total.mode == other && total.context == context);
            other != mode && at.any(|total| total.same_as.is_some())
        };
        let modes = retrieval.modes.iter().filter(|mode| !repeats(mode));
        let shares = modes.filter_map(|mode| Some((mode, retrieval.pooled(mode, context)?)));
        let mut shares: Vec<(&String, Share)> = shares.collect();
        shares.sort_by(|a, b| b.1.value().total_cmp(&a.1.value()));
        let of_mode = retrieval.pooled(mode, context);
        let more = |share: Share| of_mode.is_some_and(|of_mode| above(share, of_mode));
        Some(Weighed {
            context,
            tasks: retrieval.able_names().into_iter().map(str::to_string).collect(),
            better: shares.iter().filter(|(_, share)| more(*share)).map(|(mode, _)| mode.to_string()).collect(),
            found: shares
                .into_iter()
                .map(|(mode, share)| Found {
                    mode: mode.clone(),
                    share: share.value(),
                    interval: share.interval(),
                    trials: share.trials(),
                })
                .collect(),
            instead_of: None,
        })
    }

    /// The choice among perplexity's candidates, the best first, given its answer for these lengths, if retrieval is weighed too;
    /// `None` if retrieval does not change the answer.
    pub(super) fn chosen_with_retrieval(
        &self,
        candidates: &[&'a str],
        answer: Answer,
        lengths: &[usize],
    ) -> Option<Chosen<'a>> {
        let retrieval = self.results.retrieval.as_ref()?;
        let (context, own) = (judged_at(retrieval)?, self.baseline()?);
        if !matches!(answer, Answer::Use | Answer::Keep | Answer::Undecided) {
            return None;
        }
        let longest = *lengths.iter().max()?;
        let of = |mode: &str| retrieval.pooled(mode, context);
        let before = of(own)?;
        let finds_more = |mode: &str| of(mode).is_some_and(|share| above(share, before));
        let finds_less = |mode: &str| of(mode).is_none_or(|share| above(before, share));
        let reads_better = |mode: &str| answer == Answer::Use && self.beaten(own, mode, lengths);
        let bearable =
            |mode: &str| !self.beaten(mode, own, &[longest]) || carries_to_the_end(self.results, mode, self.trained);
        let may = |mode: &&str| {
            let better = (reads_better(mode) && !finds_less(mode)) || (finds_more(mode) && bearable(mode));
            *mode != own && better
        };
        let may: Vec<&str> = candidates.iter().copied().filter(may).collect();
        let most = may.iter().filter_map(|mode| of(mode)).max_by(|a, b| a.value().total_cmp(&b.value()));
        let near = |mode: &&str| most.zip(of(mode)).is_some_and(|(most, share)| !above(most, share));
        let settings: Vec<&str> = may.into_iter().filter(near).collect();
        let Some((&mode, rest)) = settings.split_first() else {
            let leader = *candidates.first()?;
            let disagree = answer == Answer::Use;
            return disagree.then_some(Chosen {
                answer: Answer::Disagree,
                mode: leader,
                tied: vec![],
                settings: vec![],
            });
        };
        let tied = rest.iter().copied().filter(|other| !self.beaten(other, mode, lengths)).collect();
        let to_the_end = |mode: &&str| self.beats_baseline(mode, longest) || finds_more(mode);
        Some(Chosen {
            answer: Answer::Use,
            mode,
            tied,
            settings: settings.iter().copied().filter(to_the_end).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compare::results::tests::cells;
    use crate::compare::{Recommendation, Results};
    use crate::perplexity::Bucket;
    use crate::report::RetrievalSettings;
    use crate::report::html::tests_about;
    use crate::retrieval::{RetrievalScores, RetrievalSpec, summarise};

    /// What each mode costs in nats per token, and finds in 20 trials of passkey, at 256 and at 1024 tokens.
    type Row = (&'static str, [f32; 2], [usize; 2]);

    fn results(rows: &[Row]) -> Results {
        let mut all = vec![];
        let (mut specs, mut scores) = (vec![], vec![]);
        for (index, context) in [256, 1024].into_iter().enumerate() {
            for (mode, nats, found) in rows {
                all.push((*mode, context, nats[index]));
                specs.push(RetrievalSpec {
                    task: "passkey".into(),
                    context,
                    depth: Some(0.5),
                    trials: 20,
                    mode: mode.to_string(),
                    factor: 4.0,
                    same_as: None,
                    between: false,
                });
                let answers = vec![Bucket { sum: 1.0, tokens: 5 }; 20];
                scores.push(Some(RetrievalScores { found: found[index], wanted: 20, answers, seconds: 0.0 }));
            }
        }
        let mut about = tests_about();
        about.settings.retrieval = Some(RetrievalSettings {
            tasks: vec!["passkey".into()],
            haystack: None,
            depths: vec![0.5],
            trials: 20,
            skipped: vec![],
        });
        let mut results = Results::of(cells(&all), 0);
        results.retrieval = Some(summarise(&specs, &scores, &about).unwrap());
        results
    }

    fn advice(rows: &[Row]) -> Recommendation {
        crate::compare::recommend(&results(rows), true, Some(256)).unwrap()
    }

    #[test]
    fn what_is_ahead_by_perplexity_and_finds_less_is_not_recommended() {
        // ntk has the best perplexity but finds less than the model as it is; yarn is better than the model by both.
        let said = advice(&[
            ("none", [3.0, 4.0], [20, 8]),
            ("ntk", [3.0, 3.1], [20, 0]),
            ("yarn", [3.0, 3.2], [20, 20]),
            ("linear", [3.0, 3.3], [20, 19]),
        ]);
        assert_eq!((said.answer, said.mode.as_str()), (Answer::Use, "yarn"));
        let weighed = said.retrieval.unwrap();
        assert_eq!((weighed.instead_of.as_deref(), weighed.context), (Some("ntk"), 1024));
        assert_eq!((weighed.found[0].mode.as_str(), weighed.found[0].share), ("yarn", 1.0));
        assert!(weighed.better.is_empty() && weighed.found[0].interval.low > 0.8);
        let configs: Vec<&str> = said.for_configs.iter().map(|config| config.mode.as_str()).collect();
        assert_eq!(configs, ["yarn", "linear"]);
        // Without a third setting, perplexity and retrieval disagree.
        let said = advice(&[("none", [3.0, 4.0], [20, 20]), ("ntk", [3.0, 3.1], [20, 0])]);
        assert_eq!((said.answer, said.mode.as_str()), (Answer::Disagree, "ntk"));
        assert_eq!(said.retrieval.unwrap().better, ["none"]);
        assert!(said.for_configs.is_empty());
    }

    #[test]
    fn finding_more_counts_where_perplexity_bears_it() {
        // First with the same perplexity, then with a higher one that is not above that at the trained length.
        for nats in [3.0, 3.05] {
            let said = advice(&[("none", [3.1, 3.0], [20, 2]), ("yarn", [3.1, nats], [20, 20])]);
            assert_eq!((said.answer, said.mode.as_str()), (Answer::Use, "yarn"), "{nats}");
        }
        // With a higher perplexity than that, perplexity decides, and the mode that finds more is named.
        let said = advice(&[("none", [3.0, 3.0], [20, 2]), ("yarn", [3.0, 3.9], [20, 20])]);
        assert_eq!((said.answer, said.mode.as_str()), (Answer::Keep, "none"));
        assert_eq!(said.retrieval.unwrap().better, ["yarn"]);
    }

    #[test]
    fn where_nothing_is_told_apart_or_the_model_can_not_do_the_task_perplexity_decides() {
        let rows: [Row; 3] =
            [("none", [3.0, 4.0], [20, 12]), ("ntk", [3.0, 3.1], [20, 10]), ("yarn", [3.0, 3.2], [20, 12])];
        let said = advice(&rows);
        assert_eq!((said.answer, said.mode.as_str()), (Answer::Use, "ntk"));
        assert!(said.retrieval.unwrap().instead_of.is_none());
        let unable = rows.map(|(mode, nats, found)| (mode, nats, [5, if mode == "ntk" { 0 } else { found[1] }]));
        let said = advice(&unable);
        assert_eq!((said.answer, said.mode.as_str()), (Answer::Use, "ntk"));
        assert!(said.retrieval.is_none() && said.usable.iter().all(|usable| usable.retrieval.is_none()));
        // Up to which length each mode is usable, by perplexity and by retrieval.
        let usable = advice(&[("none", [3.0, 3.0], [20, 2]), ("yarn", [3.0, 4.0], [20, 20])]).usable;
        let of = |index: usize| (usable[index].perplexity, usable[index].retrieval.as_ref().unwrap().length);
        assert_eq!((of(0), of(1)), ((Some(1024), Some(256)), (Some(256), Some(1024))));
        assert!(usable[0].loses_unseen() && !usable[1].loses_unseen());
    }
}
