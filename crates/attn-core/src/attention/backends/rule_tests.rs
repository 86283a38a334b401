//! Which accelerator's kernel takes a call: the rules, on machines without accelerators.

use super::{
    cuda_rule,
    facts::{Accelerator, Facts},
    flash, metal,
};
use crate::{
    Mask,
    attention::{bias::ScoreBias, scores::AttendArgs},
};
use candle_core::{DType, Device, Tensor, Var};

/// A call with 8 lanes for `choose`, and its arguments.
fn call(accelerator: Accelerator, dtype: DType, (tq, tk, d): (usize, usize, usize)) -> (Facts, AttendArgs) {
    let facts = Facts { accelerator, dtype, b: 2, h: 4, tq, tk, d, dv: d, extent: 1000, tracked: false, lse: false };
    (facts, AttendArgs::causal(d, tq, tk).unwrap())
}

fn cuda(sizes: (usize, usize, usize)) -> (Facts, AttendArgs) {
    call(Accelerator::Cuda, DType::BF16, sizes)
}

fn metal(sizes: (usize, usize, usize)) -> (Facts, AttendArgs) {
    call(Accelerator::Metal, DType::F16, sizes)
}

/// What takes a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kernel {
    Flash { left: Option<usize>, right: Option<usize> },
    Fused,
    Sdpa { causal: bool },
}

/// The rules in the order of the backends, with candle-flash-attn built in.
fn chosen((facts, args): &(Facts, AttendArgs)) -> Option<Kernel> {
    let flash = flash::rule(facts, args).map(|(left, right)| Kernel::Flash { left, right });
    let fused = || cuda_rule::rule(facts, args).then_some(Kernel::Fused);
    flash.or_else(fused).or_else(|| metal::rule(facts, args).map(|causal| Kernel::Sdpa { causal }))
}

fn slopes() -> ScoreBias {
    ScoreBias::Linear { slopes: Tensor::new(&[0.5f32, 0.25], &Device::Cpu).unwrap() }
}

/// The same call with something about it changed.
fn with(mut base: (Facts, AttendArgs), change: impl FnOnce(&mut Facts, &mut AttendArgs)) -> (Facts, AttendArgs) {
    change(&mut base.0, &mut base.1);
    base
}

#[test]
fn cuda_takes_what_flash_attention_knows() {
    let causal = Some(Kernel::Flash { left: None, right: Some(0) });
    assert_eq!(chosen(&cuda((16, 16, 64))), causal);
    assert_eq!(chosen(&cuda((1, 900, 256))), causal);
    assert_eq!(chosen(&with(cuda((5, 9, 64)), |_, a| a.scores.bias = slopes())), causal);
    assert_eq!(chosen(&with(cuda((5, 9, 64)), |_, a| a.scores.softcap = Some(30.0))), causal);
    assert_eq!(chosen(&with(cuda((5, 9, 64)), |c, _| c.dtype = DType::F16)), causal);
    let windowed = with(cuda((5, 9, 64)), |_, a| a.mask.window = Some(4));
    assert_eq!(chosen(&windowed), Some(Kernel::Flash { left: Some(3), right: Some(0) }));
    let both = with(cuda((9, 9, 64)), |_, a| a.mask = Mask::bidirectional().with_window(Some(4)));
    assert_eq!(chosen(&both), Some(Kernel::Flash { left: Some(3), right: Some(3) }));
    let cross = with(cuda((3, 9, 64)), |_, a| (a.mask, a.q_start) = (Mask::bidirectional(), 0));
    assert_eq!(chosen(&cross), Some(Kernel::Flash { left: None, right: None }));
    let dropped = with(cuda((1, 9, 64)), |_, a| (a.q_start, a.k_start) = (108, 100));
    assert_eq!(chosen(&dropped), causal);
}

#[test]
fn cuda_leaves_the_rest_to_the_fused_kernel() {
    let dense = ScoreBias::Dense(Tensor::zeros((16, 16), DType::F32, &Device::Cpu).unwrap());
    let table = Tensor::zeros((2, 64), DType::F32, &Device::Cpu).unwrap();
    let base = || cuda((16, 16, 64));
    for refused in [
        with(base(), |c, _| c.tracked = true),
        with(base(), |c, _| c.dtype = DType::F32),
        with(base(), |c, _| (c.d, c.dv) = (20, 20)),
        with(base(), |c, _| c.dv = 128),
        with(base(), |c, _| c.extent = 1 << 31),
        with(base(), |_, a| a.scores.bias = dense),
        with(base(), |_, a| a.scores.bias = ScoreBias::Relative { table, first: -20 }),
        with(base(), |_, a| (a.scores.bias, a.mask) = (slopes(), Mask::bidirectional())),
        with(base(), |_, a| a.mask.keys = Some(vec![2..16, 0..16].into())),
        with(base(), |_, a| a.mask = a.mask.clone().with_chunk(Some(8))),
        with(cuda((4, 16, 64)), |_, a| a.q_start = 0),
        with(cuda((4, 16, 64)), |_, a| (a.q_start, a.mask) = (0, Mask::bidirectional().with_window(Some(3)))),
        with(cuda((16, 16, 64)), |c, _| c.tq = 20),
    ] {
        assert_eq!(chosen(&refused), Some(Kernel::Fused), "{refused:?}");
    }
}

#[test]
fn cuda_leaves_what_it_does_not_know_to_the_reference() {
    let base = || cuda((16, 16, 64));
    let var = |shape: &[usize]| Var::zeros(shape, DType::F32, &Device::Cpu).unwrap().as_tensor().clone();
    let tracked_slopes = ScoreBias::Linear { slopes: var(&[2]) };
    let tracked_table = ScoreBias::Relative { table: var(&[2, 64]), first: -20 };
    for refused in [
        with(base(), |c, _| c.dtype = DType::F64),
        with(base(), |c, a| (c.tracked, a.scores.bias) = (true, tracked_slopes)),
        with(base(), |c, a| (c.tracked, a.scores.bias, a.scores.softcap) = (true, tracked_table, Some(30.0))),
        with(base(), |c, _| (c.d, c.dv) = (264, 264)),
        with(base(), |c, _| c.dv = 512),
        with(base(), |_, a| a.scores.softcap = Some(0.0)),
    ] {
        assert_eq!(chosen(&refused), None, "{refused:?}");
    }
}

#[test]
fn padding_and_chunks_that_hide_nothing_do_not_count() {
    let causal = Some(Kernel::Flash { left: None, right: Some(0) });
    assert_eq!(chosen(&with(cuda((4, 16, 64)), |_, a| a.mask.keys = Some(vec![0..16, 0..20].into()))), causal);
    assert_eq!(chosen(&with(cuda((4, 16, 64)), |_, a| a.mask = a.mask.clone().with_chunk(Some(16)))), causal);
    let later = with(cuda((4, 16, 64)), |_, a| {
        (a.q_start, a.k_start, a.mask) = (28, 16, a.mask.clone().with_chunk(Some(16)));
    });
    assert_eq!(chosen(&later), causal);
    let across = with(cuda((4, 16, 64)), |_, a| {
        (a.q_start, a.k_start, a.mask) = (27, 15, a.mask.clone().with_chunk(Some(16)));
    });
    assert_eq!(chosen(&across), Some(Kernel::Fused));
}

#[test]
fn metal_decodes_where_the_query_sees_every_key() {
    let all = Some(Kernel::Sdpa { causal: false });
    assert_eq!(chosen(&metal((1, 900, 64))), all);
    assert_eq!(chosen(&with(metal((1, 900, 64)), |c, _| c.dtype = DType::F32)), all);
    assert_eq!(chosen(&with(metal((1, 9, 64)), |_, a| a.mask.window = Some(9))), all);
    for refused in [
        with(metal((1, 9, 64)), |_, a| a.mask.window = Some(8)),
        with(metal((1, 9, 64)), |_, a| a.q_start = 7),
        with(metal((1, 9, 64)), |_, a| a.scores.bias = slopes()),
        with(metal((1, 9, 64)), |_, a| a.scores.softcap = Some(30.0)),
        with(metal((1, 9, 64)), |_, a| a.mask.keys = Some(vec![0..9, 1..9].into())),
        metal((1, 9, 72)),
        with(metal((1, 9, 256)), |c, _| c.dtype = DType::F32),
        with(metal((1, 9, 64)), |c, _| c.dtype = DType::F64),
    ] {
        assert_eq!(chosen(&refused), None, "{refused:?}");
    }
}

#[test]
fn metal_prefills_where_its_blocks_end_with_the_keys() {
    let causal = Some(Kernel::Sdpa { causal: true });
    for sizes in
        [(64, 64, 64), (100, 100, 64), (32, 77, 64), (64, 100, 128), (100, 100, 80), (48, 48, 64), (64, 64, 128)]
    {
        assert_eq!(chosen(&metal(sizes)), causal, "{sizes:?}");
    }
    // From the start with 16 keys to a block: 7 blocks of keys end within the fourth block of queries, 8 with it.
    assert_eq!(chosen(&metal((100, 100, 128))), None);
    assert_eq!(chosen(&metal((120, 120, 128))), causal);
    // A block of queries that is not full, behind keys that came before.
    assert_eq!(chosen(&metal((16, 32, 64))), None);
    assert_eq!(chosen(&metal((33, 77, 64))), None);
    assert_eq!(chosen(&with(metal((64, 64, 64)), |_, a| a.mask.window = Some(80))), None);
    assert_eq!(chosen(&with(metal((32, 64, 64)), |_, a| a.q_start = 0)), None);
    let cross = with(metal((5, 9, 64)), |_, a| (a.mask, a.q_start) = (Mask::bidirectional(), 0));
    assert_eq!(chosen(&cross), Some(Kernel::Sdpa { causal: false }));
}

#[test]
fn what_no_accelerator_knows_is_left_to_the_reference() {
    let sinks = Tensor::zeros(4, DType::F32, &Device::Cpu).unwrap();
    let keys = || {
        let of = |t: usize| Tensor::zeros((2, 4, t), DType::F32, &Device::Cpu).unwrap();
        ScoreBias::Keys { queries: of(16), keys: of(16) }
    };
    for base in [|| cuda((16, 16, 64)), || metal((16, 16, 64))] {
        for refused in [
            with(base(), |_, a| a.scores.sinks = Some(sinks.clone())),
            with(base(), |_, a| a.scores.bias = keys()),
            with(base(), |_, a| a.mask = Mask::causal().with_beyond(Some(4))),
            with(base(), |_, a| a.mask = Mask::causal().with_first(Some(4))),
            with(base(), |_, a| a.mask = Mask::causal().with_previous_chunk(4)),
            with(base(), |_, a| a.mask = Mask::causal().with_documents(Some(vec![vec![0], vec![3]].into()))),
            with(base(), |c, _| c.lse = true),
        ] {
            assert_eq!(chosen(&refused), None, "{refused:?}");
        }
    }
}
