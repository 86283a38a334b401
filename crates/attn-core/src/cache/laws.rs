//! What holds for a cache with keys and values of any type: it returns what was appended, rounded exactly once, and truncating,
//! cloning and reordering leave no difference.
//!
//! In f64, where the products of one token and of many tokens round to the same f32 numbers, and so to the same blocks.

use crate::{
    AttentionConfig, AttentionParts, CacheType, CacheTypes, LatentAttention, LatentConfig, LatentParts, LayerCache,
    Linear, Mask, MultiHeadAttention, Norm, NormKind, PositionEncoding, Positions, Projections, QueryProjection,
    RopeConfig,
    position::{Alibi, AlibiConfig, Cope, Fox, Nope, Rope, Shaw, extend::ExtendConfig},
    testing::randn,
};
use candle_core::{DType, Device, Result, Tensor};
use std::{ops::Range, sync::Arc};

const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const DIM: usize = 32;
const HIDDEN: usize = HEADS * DIM;
const TOKENS: usize = 40;

fn normal(shape: &[usize]) -> Result<Tensor> {
    randn(0.0, 1.0, shape)?.to_dtype(DType::F64)
}

fn layer(position: Arc<dyn PositionEncoding>, mask: Mask) -> Result<MultiHeadAttention> {
    let linear = |rows: usize, columns: usize| Linear::new((normal(&[rows, columns])? * 0.1)?, None);
    let (q, k, v) = (linear(HIDDEN, HIDDEN)?, linear(KV_HEADS * DIM, HIDDEN)?, linear(KV_HEADS * DIM, HIDDEN)?);
    let parts = AttentionParts::new(Projections::Separate { q, k, v }, linear(HIDDEN, HIDDEN)?);
    let config = AttentionConfig::new(HIDDEN, HEADS, KV_HEADS).with_mask(mask);
    MultiHeadAttention::from_parts(config, parts, position)
}

/// Encodings that differ in what a cache has of them: one copy of the keys or two, turned or not, numbers beside them.
fn encodings() -> Result<Vec<(String, Arc<dyn PositionEncoding>)>> {
    let rope = || RopeConfig { max_position_embeddings: 16, ..RopeConfig::new(DIM, 1e4) };
    let mut all: Vec<(String, Arc<dyn PositionEncoding>)> = vec![
        ("nope".into(), Arc::new(Nope::default())),
        ("rope".into(), Arc::new(Rope::new(rope())?)),
        ("alibi".into(), Arc::new(Alibi::new(AlibiConfig::new(HEADS), &Device::Cpu)?)),
        ("fox".into(), Arc::new(Fox::from_gate(Linear::new(normal(&[HEADS, HIDDEN])?, Some(normal(&[HEADS])?))?))),
        ("shaw".into(), Arc::new(Shaw::from_table(normal(&[7, DIM])?, -5)?)),
        ("cope".into(), Arc::new(Cope::from_table(normal(&[DIM, 6])?)?)),
    ];
    for name in ExtendConfig::NAMES {
        all.push((name.to_string(), ExtendConfig::new(name, 16, 48)?.build(rope())?));
    }
    Ok(all)
}

fn all_types() -> impl Iterator<Item = CacheTypes> {
    let plain = CacheTypes { k: Some(CacheType::F16), v: None };
    let mixed = CacheTypes { k: Some(CacheType::Q8_0), v: Some(CacheType::Q4_0) };
    CacheType::ALL.into_iter().map(CacheTypes::both).chain([plain, mixed])
}

fn feed(layer: &MultiHeadAttention, xs: &Tensor, slots: Range<usize>, cache: &mut LayerCache) -> Result<Tensor> {
    let block = xs.narrow(1, slots.start, slots.len())?;
    layer.forward(&block, &Positions::new(slots).with_length(TOKENS), Some(cache))
}

fn in_blocks(layer: &MultiHeadAttention, xs: &Tensor, types: CacheTypes, blocks: &[usize]) -> Result<Tensor> {
    let mut cache = layer.new_cache(7).with_types(types);
    let (mut outs, mut slot) = (vec![], 0);
    for n in blocks {
        outs.push(feed(layer, xs, slot..slot + n, &mut cache)?);
        slot += n;
    }
    Tensor::cat(&outs, 1)
}

fn off(a: &Tensor, b: &Tensor) -> Result<f64> {
    (a - b)?.abs()?.max_all()?.to_scalar()
}

#[test]
fn any_chunking_is_one_prefill_under_every_encoding_and_type() -> Result<()> {
    let xs = normal(&[2, TOKENS, HIDDEN])?;
    for (name, encoding) in encodings()? {
        let layer = layer(encoding, Mask::causal())?;
        let exact = layer.forward(&xs, &Positions::new(0..TOKENS).with_length(TOKENS), None)?;
        for types in all_types() {
            let whole = in_blocks(&layer, &xs, types, &[TOKENS])?;
            for blocks in [&[1; TOKENS][..], &[5, 1, 1, 9, 1, 20, 3]] {
                let off = off(&whole, &in_blocks(&layer, &xs, types, blocks)?)?;
                assert!(off < 1e-9, "{name}, {types:?}: chunks differ by {off:e}");
            }
            // Rounded, and not much: a block of four bits has the sixteenth of its largest number as its step.
            let lost = off(&whole, &exact)? / exact.abs()?.max_all()?.to_scalar::<f64>()?;
            let most = if types.v == Some(CacheType::Q4_0) { 0.5 } else { 0.05 };
            let rounds = types != CacheTypes::both(CacheType::F32);
            // CoPE counts positions by sums over all keys, which a little of each moves far.
            let little = lost < most || name == "cope";
            assert!(little && (lost > 1e-5) == rounds, "{name}, {types:?}: off by {lost:e}");
        }
    }
    Ok(())
}

/// A latent is a key and, its first numbers, a value: cut where numbers were turned apart, and where they were turned as one.
#[test]
fn a_latent_is_cut_whatever_was_turned_at_once() -> Result<()> {
    let linear = |rows: usize, columns: usize| Linear::new((normal(&[rows, columns])? * 0.1)?, None);
    let xs = normal(&[2, TOKENS, HIDDEN])?;
    for (rank, rope) in [(64, 32), (32, 32)] {
        let config = LatentConfig::new(HIDDEN, HEADS, rank, (DIM, rope, DIM));
        let parts = LatentParts {
            q: QueryProjection::Full(linear(HEADS * (DIM + rope), HIDDEN)?),
            kv_a: linear(rank + rope, HIDDEN)?,
            kv_a_norm: Norm::new(NormKind::Rms, Some(Tensor::ones(rank, DType::F64, &Device::Cpu)?), None, 1e-6),
            kv_b: normal(&[HEADS * 2 * DIM, rank])?,
            out: linear(HIDDEN, HEADS * DIM)?,
        };
        let layer = LatentAttention::new(config, parts, Arc::new(Rope::new(RopeConfig::new(rope, 1e4))?))?;
        let read = |types: CacheTypes, block: usize| -> Result<Tensor> {
            let mut cache = layer.new_cache(7).with_types(types);
            let blocks = (0..TOKENS).step_by(block).map(|slot| {
                layer.forward(&xs.narrow(1, slot, block)?, &Positions::new(slot..slot + block), Some(&mut cache))
            });
            Tensor::cat(&blocks.collect::<Result<Vec<_>>>()?, 1)
        };
        let exact = read(CacheTypes::default(), TOKENS)?;
        for types in all_types() {
            let whole = read(types, TOKENS)?;
            for block in [1, 4] {
                let off = off(&whole, &read(types, block)?)?;
                assert!(off < 1e-9, "{rank} and {rope}, {types:?}, {block} at a time: off by {off:e}");
            }
            let lost = off(&whole, &exact)? / exact.abs()?.max_all()?.to_scalar::<f64>()?;
            assert!(lost < if types.k == Some(CacheType::Q4_0) { 0.5 } else { 0.05 }, "{types:?}: off by {lost:e}");
        }
    }
    Ok(())
}

#[test]
fn a_cache_goes_back_forks_and_reorders_whatever_its_type() -> Result<()> {
    let xs = normal(&[3, TOKENS, HIDDEN])?;
    let order = Tensor::new(&[2u32, 0, 2], &Device::Cpu)?;
    for mask in [Mask::causal(), Mask::causal().with_window(Some(9))] {
        let layer = layer(Arc::new(Rope::new(RopeConfig::new(DIM, 1e4))?), mask.clone())?;
        for types in all_types() {
            let whole = in_blocks(&layer, &xs, types, &[TOKENS])?;
            let rest = whole.narrow(1, 20, 5)?;
            let mut cache = layer.new_cache(4).with_types(types);
            feed(&layer, &xs, 0..20, &mut cache)?;
            let mut fork = cache.clone();
            feed(&layer, &(&xs * 3.0)?, 20..22, &mut fork)?;
            fork.truncate(20)?;
            assert!(off(&feed(&layer, &xs, 20..25, &mut fork)?, &rest)? < 1e-9, "{types:?}: a truncated fork");
            let mut beams = cache.clone();
            beams.select_rows(&[2, 0, 2])?;
            let chosen = xs.contiguous()?.index_select(&order, 0)?;
            let theirs = rest.contiguous()?.index_select(&order, 0)?;
            assert!(off(&feed(&layer, &chosen, 20..25, &mut beams)?, &theirs)? < 1e-9, "{types:?}: beams");
            assert!(
                off(&feed(&layer, &xs, 20..25, &mut cache)?, &rest)? < 1e-9,
                "{types:?}: the first after its forks"
            );
            cache.reset();
            let again = feed(&layer, &xs.narrow(0, 1, 1)?, 0..20, &mut cache)?;
            assert!(off(&again, &whole.narrow(0, 1, 1)?.narrow(1, 0, 20)?)? < 1e-9, "{types:?}: after a reset");
        }
    }
    Ok(())
}

#[test]
fn a_cache_takes_the_bytes_of_its_types() -> Result<()> {
    let layer = layer(Arc::new(Nope::default()), Mask::causal())?;
    let xs = normal(&[3, TOKENS, HIDDEN])?;
    for types in all_types() {
        let mut cache = layer.new_cache(TOKENS).with_types(types);
        feed(&layer, &xs, 0..20, &mut cache)?;
        let row = |kind: Option<CacheType>| kind.map_or(8 * DIM, |kind| kind.row_bytes(DIM));
        assert_eq!(cache.size_in_bytes(), 3 * KV_HEADS * TOKENS * (row(types.k) + row(types.v)), "{types:?}");
    }
    Ok(())
}

/// Keys of another type have no place beside those that are there.
#[test]
fn types_do_not_mix() -> Result<()> {
    let layer = layer(Arc::new(Nope::default()), Mask::causal())?;
    let xs = normal(&[1, TOKENS, HIDDEN])?;
    let mut cache = layer.new_cache(TOKENS).with_types(CacheTypes::both(CacheType::Q8_0));
    feed(&layer, &xs, 0..20, &mut cache)?;
    let mut cache = cache.with_types(CacheTypes::both(CacheType::Q4_0));
    let message = feed(&layer, &xs, 20..21, &mut cache).expect_err("refused").to_string();
    assert!(message.contains("q8_0") && message.contains("q4_0"), "{message}");
    Ok(())
}
