use super::point::short;
use super::*;
use attn_core::RopeOverride;
use std::collections::BTreeSet;

fn stock() -> Vec<Stock> {
    let plain = Point { theta: 10_000.0, factor: 1.0, beta_fast: 32.0, beta_slow: 1.0, attention: 1.0 };
    let named = |mode: Mode, point: Option<Point>| Stock {
        mode,
        rope: point
            .map_or_else(
                || RopeOverride { scaling: Some(mode.to_string()), factor: Some(2.0), ..RopeOverride::default() },
                |point| point.to_override(None),
            )
            .into(),
        point,
    };
    vec![
        named(Mode::none(), Some(plain)),
        named("linear".parse().unwrap(), None),
        named("yarn".parse().unwrap(), Some(Point { factor: 2.0, attention: 1.069, ..plain })),
    ]
}

fn number(rope: &PositionOverride, key: &str, default: f64) -> f64 {
    rope.rope.params.iter().find(|(k, _)| k == key).map_or(default, |(_, value)| value.parse().unwrap())
}

/// A function with one minimum, quadratic in the logarithms of theta, factor and attention factor, with its lowest point at
/// 30000, 3 and 1.1. Windows differ by a constant that each adds.
fn bowl(rope: &PositionOverride, windows: &[usize]) -> Vec<WindowNll> {
    let off = |value: f64, lowest: f64| (value / lowest).ln().powi(2);
    let nll = if rope.rope.scaling.as_deref() == Some("linear") {
        5.0
    } else {
        2.0 + off(rope.rope.theta.unwrap_or(10_000.0), 30_000.0)
            + off(rope.rope.factor.unwrap_or(1.0), 3.0)
            + 10.0 * off(number(rope, "attention_factor", 1.0), 1.1)
    };
    let window =
        |&index: &usize| WindowNll { sum: 100.0 * (nll + index as f64 / 10.0), tokens: 100, ..WindowNll::default() };
    windows.iter().map(window).collect()
}

#[test]
fn the_search_finds_the_bottom_of_a_bowl_and_never_sees_the_windows_it_is_judged_on() {
    let mut seen = BTreeSet::new();
    let mut measure = |rope: &PositionOverride, windows: &[usize]| {
        seen.extend(windows.iter().copied());
        Ok(bowl(rope, windows))
    };
    let all: Vec<usize> = (0..16).collect();
    let chosen = choose(&mut measure, &stock(), &all, None, 200, 1).unwrap();
    let close = |value: f64, lowest: f64, by: f64| (value / lowest).ln().abs() < by;
    let rope = &chosen.winner;
    assert!(close(rope.rope.theta.unwrap(), 30_000.0, 0.1) && close(rope.rope.factor.unwrap(), 3.0, 0.1), "{rope:?}");
    assert!(close(number(rope, "attention_factor", 1.0), 1.1, 0.01), "{rope:?}");
    assert_eq!(chosen.stock, 2, "yarn is the best of the stock modes in this bowl");
    assert!(seen.iter().all(|index| index % 2 == 0), "{seen:?}");
    assert_eq!(seen.len(), 8);
    let dropped = chosen.tried.iter().filter(|tried| tried.windows == 4).count();
    assert!(dropped > 0 && chosen.tried.iter().all(|tried| [4, 8].contains(&tried.windows)));
}

#[test]
fn the_budget_holds_and_a_seed_repeats() {
    let run = |budget: usize, seed: u64| {
        let mut measure = |rope: &PositionOverride, windows: &[usize]| Ok(bowl(rope, windows));
        choose(&mut measure, &stock(), &(0..8).collect::<Vec<_>>(), None, budget, seed).unwrap()
    };
    assert_eq!(run(10, 1).tried, run(10, 1).tried);
    assert_eq!(run(10, 1).tried.len(), 3 + 10);
    assert_ne!(run(10, 1).tried, run(10, 2).tried);
    // Without a budget the best stock mode wins.
    let none = run(0, 1);
    assert_eq!((none.tried.len(), &none.winner), (3, &stock()[2].rope));
}

#[test]
fn points_that_yarn_has_not_are_not_tried() {
    let yarn = Point { theta: 10_000.0, factor: 1.1, beta_fast: 2.0, beta_slow: 1.5, attention: 1.0 };
    assert_eq!(yarn.moved(2, 0.5), None, "the ramp would be the wrong way round");
    assert_eq!(yarn.moved(1, 0.5).unwrap().factor, 1.0);
    let plain = Point { factor: 1.0, ..yarn };
    assert_eq!((plain.moved(1, 0.5), plain.moved(2, 2.0)), (None, None));
    assert_eq!(plain.to_override(None).scaling.as_deref(), Some("none"));
    assert_eq!(short(123_456.0), 123_500.0);
}

#[test]
fn windows_of_the_two_halves_share_no_token() {
    let tokens: Vec<u32> = (0..1000).collect();
    let texts =
        [Text { name: "a".into(), tokens: tokens.clone() }, Text { name: "b".into(), tokens: tokens[..350].to_vec() }];
    let plan = Plan { factor: crate::compare::Factor::Auto, ..Plan::new(vec![100], vec![]) };
    let cut = cut(&texts, &plan, 100).unwrap();
    let (choosing, confirming) = (cut.spans(|i| i % 2 == 0), cut.spans(|i| i % 2 == 1));
    assert_eq!(choosing.len() + confirming.len(), 13);
    for a in &choosing {
        assert!(confirming.iter().all(|b| a.text != b.text || a.to <= b.from || b.to <= a.from), "{a:?}");
    }
    let error = super::cut(&texts[1..], &plan, 100).err().unwrap().to_string();
    assert!(error.contains("8 windows") && error.contains("there are 3"), "{error}");
}

#[test]
fn encodings_are_points_of_the_space_or_lie_outside() {
    let base = RopeConfig { max_position_embeddings: 64, ..RopeConfig::new(16, 10_000.0) };
    let of = |mode: &str| Point::of(&base.for_mode(mode, 4.0).unwrap(), 256);
    let plain = |theta: f64| Point { theta, factor: 1.0, beta_fast: 32.0, beta_slow: 1.0, attention: 1.0 };
    assert_eq!(of("none"), Some(plain(10_000.0)));
    let theta = |factor: f64| 10_000.0 * factor.powf(16.0 / 14.0);
    // At four times the trained context, dynamic scaling by 4 has a factor of 4 * 4 - 3.
    for (mode, want) in [("ntk", theta(4.0)), ("dynamic", theta(13.0))] {
        let point = of(mode).unwrap();
        assert!((point.theta / want - 1.0).abs() < 1e-9 && Point { theta: 1.0, ..point } == plain(1.0), "{point:?}");
    }
    assert_eq!(of("ntk-by-parts"), Some(Point { factor: 4.0, ..plain(10_000.0) }));
    assert_eq!(of("yarn"), Some(Point { factor: 4.0, attention: 0.1 * 4f64.ln() + 1.0, ..plain(10_000.0) }));
    assert_eq!((of("linear"), of("llama3")), (None, None));
}
