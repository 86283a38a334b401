use super::*;
use attn_core::position::rope::scaling::Proportional;
use attn_core::position::{RopeOverride, SandwichConfig, T5Bias};
use candle_core::{DType, Tensor};
use proptest::prelude::*;

fn rope(width: usize, theta: f64, trained: usize) -> RopeConfig {
    RopeConfig { max_position_embeddings: trained, ..RopeConfig::new(width, theta) }
}

fn explain(config: &RopeConfig, trained: usize, length: usize) -> RopeEffects {
    super::effects(&PositionConfig::Rope(config.clone()), None, Some(trained), length).unwrap().rope.unwrap()
}

fn of<'a>(effects: &'a RopeEffects, name: &str) -> &'a ScalingEffect {
    effects.scalings.iter().find(|s| s.name == name).unwrap()
}

#[test]
fn llama_3_1_keeps_blends_and_divides_what_is_published() {
    let change = RopeOverride {
        scaling: Some("llama3".into()),
        factor: Some(8.0),
        original_context: Some(8192),
        ..Default::default()
    };
    let config = rope(128, 500_000.0, 131_072).with_override(&change).unwrap();
    // At 4096 tokens, every scaling but the configured one would change nothing.
    let effects = explain(&config, 8192, 4096);
    let llama = of(&effects, "configured");
    assert_eq!((llama.kept, llama.between, llama.divided), (29, 6, 29));
    assert_eq!(effects.scalings.len(), 1);
    assert_eq!(effects.pairs.len(), 64);
}

#[test]
fn published_bounds_and_decay_come_out() {
    let effects = explain(&rope(128, 10_000.0, 4096), 4096, 8192);
    let curve = &effects.decay[0];
    assert_eq!((curve.at[0], curve.values[0]), (0, 32.5));
    let (trained, length) = (effects.bound.for_trained.unwrap(), effects.bound.for_length.unwrap());
    for bound in [trained, length] {
        let published = PUBLISHED_BASES.iter().find(|(context, _)| *context == bound.context).unwrap().1;
        assert!(!bound.published && (bound.theta / published - 1.0).abs() < 0.05, "{bound:?}");
    }
    // 10000 lies between the bounds of 1024 and 2048 tokens.
    let horizon = effects.bound.horizon.unwrap();
    assert!((1024..2048).contains(&horizon), "{horizon}");
}

#[test]
fn far_bounds_are_the_published_ones_or_none() {
    let plain = rope(128, 500_000.0, 131_072);
    let bound =
        |config: &RopeConfig| BaseBound::new(config, &config.frequencies(1).inv_freq, 131_072, 131_073, 1 << 14);
    let far = bound(&plain);
    assert_eq!(far.for_trained, Some(SmallestBase { context: 131_072, theta: 4.9e6, published: true }));
    assert_eq!(far.for_length, Some(SmallestBase { context: 131_073, theta: 2.4e7, published: true }));
    assert_eq!(bound(&rope(64, 500_000.0, 131_072)).for_trained, None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn scalings_do_to_each_pair_what_their_papers_say(
        pairs in 4usize..40, log_theta in 3.0..6.0f64, trained in 64usize..4096, times in 2usize..20
    ) {
        let (length, factor) = (trained * times, times as f64);
        let config = rope(2 * pairs, 10f64.powf(log_theta), trained);
        let (scalings, curves) = scalings(&config, &config, trained, length, 64);
        let of = |name: &str| scalings.iter().find(|s| s.name == name).unwrap();
        let near = |a: f64, b: f64| (a / b - 1.0).abs() < 1e-6;
        let by = |name: &str| of(name).divided_by.iter().map(|b| b.unwrap()).collect::<Vec<_>>();
        prop_assert!(by("linear").iter().all(|&b| near(b, factor)));
        prop_assert_eq!(of("linear").divided, pairs);
        // NTK: the fastest pair is kept, the slowest divided by the factor, geometric between.
        let ntk = by("ntk");
        prop_assert!(near(ntk[0], 1.0) && near(ntk[pairs - 1], factor));
        prop_assert!(ntk.windows(2).all(|w| near(w[1] / w[0], factor.powf(1.0 / (pairs - 1) as f64))));
        for name in ["ntk-by-parts", "ntk-mixed", "yarn", "llama3"] {
            let by = by(name);
            prop_assert!(by.windows(2).all(|w| w[1] >= w[0] * (1.0 - 1e-9)), "{name} grows towards slow pairs");
            prop_assert!(by.iter().all(|&b| (1.0 - 1e-9..=factor * (1.0 + 1e-9)).contains(&b)));
        }
        prop_assert_eq!(by("yarn"), by("ntk-by-parts"));
        prop_assert!(near(of("yarn").attention_factor, 0.1 * factor.ln() + 1.0));
        for scaling in &scalings {
            prop_assert_eq!(scaling.kept + scaling.between + scaling.divided, pairs);
        }
        for curve in &curves {
            prop_assert!(near(curve.values[0], (pairs + 1) as f64 / 2.0));
            prop_assert!(curve.values.iter().all(|&v| v <= curve.values[0] * (1.0 + 1e-9)));
        }
    }

    #[test]
    fn spaced_numbers_ascend_from_one_to_the_last(last in 1usize..1_000_000, n in 2usize..200) {
        let at = log_spaced(last, n);
        prop_assert!(at[0] == 1 && *at.last().unwrap() == last && at.len() <= n);
        prop_assert!(at.windows(2).all(|w| w[0] < w[1]));
    }
}

#[test]
fn pairs_that_stand_still_have_no_wavelength() {
    let scaling = Proportional { partial_rotary_factor: 0.25, factor: 1.0 }.into();
    let effects = explain(&RopeConfig { scaling, ..rope(32, 10_000.0, 256) }, 256, 512);
    assert_eq!(effects.pairs.iter().filter(|pair| pair.wavelength.is_none()).count(), 12);
    let names: Vec<&str> = effects.scalings.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(names, ["linear"], "the others are not defined here");
    assert_eq!(of(&effects, "linear").divided_by[4], None);
    assert_eq!(of(&effects, "linear").divided, 4);
}

#[test]
fn alibi_falls_by_its_slopes() {
    let explained = effects(&PositionConfig::Alibi(AlibiConfig::new(8)), None, Some(64), 256).unwrap();
    let bias = explained.bias.unwrap();
    assert_eq!((bias.distances[0], *bias.distances.last().unwrap()), (-255, 0));
    for (head, row) in explained.heads.iter().zip(&bias.values) {
        assert!((head.slope * head.half_distance - LN_2).abs() < 1e-12);
        for (&distance, &value) in bias.distances.iter().zip(row) {
            assert!((value - head.slope * distance as f64).abs() < 1e-4, "{distance}: {value}");
        }
    }
    assert_eq!(bias.values.len(), 8);
}

#[test]
fn sandwich_is_most_for_the_nearest_key() {
    let config = PositionConfig::Sandwich(SandwichConfig::new(4));
    let bias = effects(&config, None, None, 300).unwrap().bias.unwrap();
    assert_eq!((bias.distances[0], *bias.distances.last().unwrap()), (-299, 0));
    // At distance 0 the product is that of 64 equal pairs; the heads' compression ratios are 2, 4, 6 and 8.
    let here: Vec<f64> = bias.values.iter().map(|row| *row.last().unwrap()).collect();
    assert!(here.iter().zip([32.0, 16.0, 64.0 / 6.0, 8.0]).all(|(a, b)| (a - b).abs() < 1e-6), "{here:?}");
    assert!(bias.values.iter().flatten().all(|value| *value <= 32.0));
}

#[test]
fn buckets_cover_every_distance_once_and_the_map_shows_the_table() -> Result<()> {
    for bidirectional in [false, true] {
        let config = T5Config::new(2, bidirectional);
        let ranges = buckets(&config);
        assert_eq!((ranges[0].first, ranges.last().unwrap().last.is_none()), (None, bidirectional));
        for pair in ranges.windows(2) {
            assert_eq!(pair[0].last.unwrap() + 1, pair[1].first.unwrap());
        }
        let named = PositionConfig::T5(config.clone());
        assert!(effects(&named, None, None, 64)?.bias.is_none(), "nothing is made up without the table");
        let table = Tensor::arange(0f32, 64.0, &Device::Cpu)?.reshape((32, 2))?;
        let tensors = std::iter::once(("weight".to_string(), table.clone())).collect();
        let vb = VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
        let bias = effects(&named, Some(vb), None, 4096)?.bias.unwrap();
        assert_eq!((bias.distances[0], bias.distances.contains(&255)), (-255, bidirectional));
        for (head, row) in bias.values.iter().enumerate() {
            for (&distance, &value) in bias.distances.iter().zip(row) {
                assert_eq!(value, (config.bucket(distance) * 2 + head) as f64);
            }
        }
        assert!(T5Bias::from_table(config, table).is_ok());
    }
    let causal = buckets(&T5Config::new(1, false));
    let of = |bucket: usize| *causal.iter().find(|b| b.bucket == bucket).unwrap();
    assert_eq!(of(16), Bucket { bucket: 16, first: Some(-18), last: Some(-16) });
    assert_eq!(of(31), Bucket { bucket: 31, first: None, last: Some(-113) });
    Ok(())
}
