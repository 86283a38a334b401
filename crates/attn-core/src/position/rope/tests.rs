use super::*;
use crate::position::laws::ropes;
use crate::position::rope::scaling::{Dynamic, Yarn};
use crate::position::{Layout, RopeScaling};
use crate::testing::randn;
use candle_core::Device;
use proptest::prelude::*;

fn distance(a: &Tensor, b: &Tensor) -> Result<f32> {
    (a.to_dtype(DType::F32)? - b.to_dtype(DType::F32)?)?.abs()?.flatten_all()?.max(0)?.to_scalar()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Both ways to rotate round in the same places, so they agree to the bit.
    #[test]
    fn one_pass_is_the_plain_ops(
        (b, h, t) in (1usize..4, 1usize..5, 1usize..12),
        (pairs, rest) in (1usize..40, 0usize..9),
        start in 0usize..600,
        interleaved: bool,
        transposed: bool,
        pads in proptest::option::of(proptest::collection::vec(0usize..8, 3)),
        dtype in prop_oneof![Just(DType::F32), Just(DType::F16), Just(DType::BF16)],
    ) {
        let layout = if interleaved { Layout::Interleaved } else { Layout::Half };
        let config = RopeConfig { rotary_dim: 2 * pairs, layout, ..RopeConfig::new(2 * pairs + rest, 1e4) };
        let rope = Rope::new(config).unwrap();
        let d = 2 * pairs + rest;
        let xs = if transposed {
            // A slice of fused projections: strides of all kinds, lanes contiguous.
            let fused = randn(0.0, 1.0, (b, t, h + 1, d + 3)).unwrap();
            fused.narrow(2, 1, h).unwrap().narrow(3, 2, d).unwrap().transpose(1, 2).unwrap()
        } else {
            randn(0.0, 1.0, (b, h, t, d)).unwrap()
        };
        let xs = xs.to_dtype(dtype).unwrap();
        let pads = pads.map(|pads| pads[..b].into());
        let positions = Positions::new(start..start + t).with_pads(pads);
        let fast = rope.rotate_fast(&xs, &positions).unwrap();
        prop_assert!(fast.is_contiguous());
        prop_assert_eq!(distance(&fast, &rope.rotate_plain(&xs, &positions).unwrap()).unwrap(), 0.0);
    }
}

#[test]
fn large_inputs_run_in_parallel_and_agree() -> Result<()> {
    for config in ropes() {
        let rope = Rope::new(config)?;
        let xs = randn(0.0, 1.0, (2, 300, 16, 8))?.transpose(1, 2)?;
        let positions = Positions::new(5..305);
        assert_eq!(distance(&rope.rotate_fast(&xs, &positions)?, &rope.rotate_plain(&xs, &positions)?)?, 0.0);
    }
    Ok(())
}

/// Whole positions come from the shared table, others from a list of their own: both are what a rotation is.
#[test]
fn any_positions_can_be_rotated_to() -> Result<()> {
    let rope = Rope::new(RopeConfig::new(8, 1e4))?;
    let xs = randn(0.0, 1.0, (2, 3, 4, 8))?.to_dtype(DType::F64)?;
    let positions = Positions::new(5..9).with_pads(Some([0, 3].into()));
    let at: Vec<f64> = positions.all().map(|p| p as f64).collect();
    assert_eq!(distance(&rope.rotate(&xs, &positions)?, &rope.rotate_at(&xs, &at, 9)?)?, 0.0);
    // Half way twice is all the way.
    let halves: Vec<f64> = at.iter().map(|p| p / 2.0).collect();
    let twice = rope.rotate_at(&rope.rotate_at(&xs, &halves, 9)?, &halves, 9)?;
    assert!(distance(&twice, &rope.rotate(&xs, &positions)?)? < 1e-6);
    let fast = rope.rotate_at(&xs.to_dtype(DType::F32)?, &halves, 9)?;
    assert!(distance(&fast, &rope.rotate_at(&xs, &halves, 9)?)? < 1e-5);
    let far = [0.0, 3e6, 1.0, 2e6];
    let back = rope.rotate_at(&rope.rotate_at(&xs, &far, 9)?, &far.map(|p| -p), 9)?;
    assert!(distance(&back, &xs)? < 1e-6);
    assert!(rope.rotate_at(&xs, &[0.0; 3], 9).is_err() && rope.rotate_at(&xs, &[f64::NAN; 4], 9).is_err());
    Ok(())
}

/// The matrix from the paper, written out lane by lane.
#[test]
fn both_layouts_are_the_rotation_of_the_paper() -> Result<()> {
    let xs: Vec<f64> = (0..10).map(|i| (i as f64 * 0.7).sin()).collect();
    for (layout, partner) in [(Layout::Half, 4), (Layout::Interleaved, 1)] {
        let config = RopeConfig { rotary_dim: 8, layout, ..RopeConfig::new(10, 100.0) };
        let rope = Rope::new(config)?;
        let tensor = Tensor::new(xs.as_slice(), &Device::Cpu)?.reshape((1, 1, 1, 10))?;
        let got = rope.rotate(&tensor, &Positions::new(7..8))?.flatten_all()?.to_vec1::<f64>()?;
        let mut want = xs.clone();
        for pair in 0..4 {
            let a = if layout == Layout::Half { pair } else { 2 * pair };
            let (sin, cos) = (7.0 * 100f64.powf(-(pair as f64) / 4.0)).sin_cos();
            want[a] = xs[a] * cos - xs[a + partner] * sin;
            want[a + partner] = xs[a + partner] * cos + xs[a] * sin;
        }
        assert!(got.iter().zip(&want).all(|(g, w)| (g - w).abs() < 1e-12), "{layout:?}: {got:?} is not {want:?}");
    }
    Ok(())
}

/// Pitfall: an f32 angle at position 131072 has an ulp of 1/64 rad.
#[test]
fn angles_are_exact_at_long_positions() -> Result<()> {
    let rope = Rope::new(RopeConfig::new(128, 5e5))?;
    let xs = Tensor::ones((1, 1, 1, 128), DType::F32, &Device::Cpu)?;
    for position in [131_072usize, 262_145, 1_000_000] {
        let got = rope.rotate(&xs, &Positions::new(position..position + 1))?.flatten_all()?.to_vec1::<f32>()?;
        for (pair, inv_freq) in rope.inv_freq(1).iter().enumerate() {
            let (sin, cos) = (position as f64 * inv_freq).sin_cos();
            assert!((got[pair] as f64 - (cos - sin)).abs() < 2e-7, "{position}, pair {pair}");
        }
    }
    Ok(())
}

/// Pitfall: bf16 holds whole numbers up to 256, so positions in the model's dtype repeat.
#[test]
fn bf16_inputs_turn_by_f32_angles() -> Result<()> {
    let rope = Rope::new(RopeConfig::new(64, 1e4))?;
    let xs = randn(0.0, 1.0, (1, 2, 4, 64))?.to_dtype(DType::BF16)?;
    let positions = Positions::new(4093..4097);
    let exact = rope.rotate(&xs.to_dtype(DType::F32)?, &positions)?;
    assert_eq!(distance(&rope.rotate(&xs, &positions)?, &exact.to_dtype(DType::BF16)?)?, 0.0);
    Ok(())
}

#[test]
fn a_length_picks_the_frequencies() -> Result<()> {
    let dynamic = RopeScaling::from(Dynamic { factor: 2.0, original_max_position_embeddings: 8 });
    let rope = Rope::new(RopeConfig { scaling: dynamic, ..RopeConfig::new(8, 1e4) })?;
    let xs = Tensor::ones((1, 1, 1, 8), DType::F32, &Device::Cpu)?;
    let at = |length| rope.rotate(&xs, &Positions::new(5..6).with_length(length));
    assert_eq!(distance(&at(6)?, &at(8)?)?, 0.0);
    assert!(distance(&at(8)?, &at(9)?)? > 1e-4);
    assert!(distance(&at(9)?, &at(16)?)? > 1e-4);
    assert_eq!((rope.resolve(8), rope.resolve(9)), (Resolution::Fixed, Resolution::Length(9)));
    // An earlier length has its frequencies again, although tables for other lengths were made in between.
    let first = at(9)?;
    for length in 10..30 {
        at(length)?;
    }
    assert_eq!(distance(&at(9)?, &first)?, 0.0);
    Ok(())
}

#[test]
fn the_attention_factor_scales_queries_and_keys() -> Result<()> {
    let scaling = RopeScaling::from(Yarn::new(4.0, 16));
    let rope = Rope::new(RopeConfig { scaling, ..RopeConfig::new(8, 1e4) })?;
    let norm = |xs: &Tensor| xs.sqr()?.sum_all()?.sqrt()?.to_scalar::<f32>();
    let xs = randn(0.0, 1.0, (1, 1, 1, 8))?;
    let ratio = norm(&rope.rotate(&xs, &Positions::new(11..12))?)? / norm(&xs)?;
    assert!((ratio as f64 - rope.attention_factor(1)).abs() < 1e-5 && ratio > 1.13, "{ratio}");
    Ok(())
}

#[test]
fn tracked_inputs_keep_their_gradient() -> Result<()> {
    let rope = Rope::new(RopeConfig::new(8, 1e4))?;
    let xs = candle_core::Var::ones((1, 1, 3, 8), DType::F32, &Device::Cpu)?;
    let out = rope.rotate(xs.as_tensor(), &Positions::new(0..3))?;
    assert!(out.backward()?.get(&xs).is_some());
    Ok(())
}

#[test]
fn shapes_that_do_not_fit_are_refused() -> Result<()> {
    let rope = Rope::new(RopeConfig::new(8, 1e4))?;
    let xs = |t, d| Tensor::ones((2, 1, t, d), DType::F32, &Device::Cpu);
    assert!(rope.rotate(&xs(3, 8)?, &Positions::new(0..4)).is_err());
    assert!(rope.rotate(&xs(3, 6)?, &Positions::new(0..3)).is_err());
    assert!(rope.rotate(&xs(3, 8)?, &Positions::new(0..3).with_pads(Some([1, 2, 3].into()))).is_err());
    assert!(Rope::new(RopeConfig { rotary_dim: 10, ..RopeConfig::new(8, 1e4) }).is_err());
    // No token at all is fine.
    assert_eq!(rope.rotate(&xs(0, 8)?, &Positions::new(4..4))?.dims(), [2, 1, 0, 8]);
    Ok(())
}
