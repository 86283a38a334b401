use super::*;
use crate::position::{Nope, Rope};
use crate::testing::{randn, settle};
use crate::{AttentionConfig, MultiHeadAttention};
use candle_core::{DType, Device, Tensor};
use candle_nn::{VarBuilder, VarMap};

const T: usize = 40;

fn outputs(encodings: Vec<Arc<dyn PositionEncoding>>) -> Result<Vec<Tensor>> {
    let vars = VarMap::new();
    let vb = VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu);
    let layer = MultiHeadAttention::new(&AttentionConfig::new(32, 4, 2), Arc::new(Nope::default()), vb)?;
    settle(&vars)?;
    let xs = randn(0.0, 1.0, (2, T, 32))?;
    let run = |encoding| layer.with_position(encoding).forward(&xs, &Positions::new(0..T), None);
    encodings.into_iter().map(run).collect()
}

/// Numbers under which a method changes nothing.
#[test]
fn methods_that_move_no_key_are_plain_rope() -> Result<()> {
    let rope = || RopeConfig::new(8, 1e4);
    let methods = [
        ExtendConfig::SelfExtend(SelfExtendConfig { group: 1, window: 8 }),
        ExtendConfig::ReRope(ReRopeConfig { window: T }),
        ExtendConfig::LeakyReRope(LeakyReRopeConfig { window: 7, factor: 1.0 }),
        ExtendConfig::DualChunk(DualChunkConfig { chunk: T + 3, local: 3 }),
        ExtendConfig::StringShift(StringShiftConfig { shift: 9, local: 9 }),
        ExtendConfig::LmInfinite(LmInfiniteConfig { first: 4, window: T }),
        ExtendConfig::Streaming(StreamingConfig { first: 4, window: T - 4 }),
        ExtendConfig::Window(WindowConfig { window: T }),
    ];
    let mut encodings: Vec<Arc<dyn PositionEncoding>> = vec![Arc::new(Rope::new(rope())?)];
    for method in &methods {
        encodings.push(method.build(rope())?);
    }
    let outputs = outputs(encodings)?;
    for (method, out) in methods.iter().zip(&outputs[1..]) {
        let off = (out - &outputs[0])?.abs()?.max_all()?.to_scalar::<f32>()?;
        assert!(off < 1e-5, "{}: {off:e}", method.name());
    }
    // The first keys and the window together hold the text; one token more, and one is dropped.
    let streaming = ExtendConfig::Streaming(StreamingConfig { first: 4, window: T - 4 });
    assert!(streaming.is_plain(T) && !streaming.is_plain(T + 1));
    Ok(())
}

#[test]
fn every_name_has_a_method_that_moves_something() -> Result<()> {
    let rope = || RopeConfig::new(8, 1e4);
    let mut encodings: Vec<Arc<dyn PositionEncoding>> = vec![Arc::new(Rope::new(rope())?)];
    for name in ExtendConfig::NAMES {
        let method = ExtendConfig::new(name, 16, T)?;
        assert_eq!(method.name(), *name);
        encodings.push(method.build(rope())?);
    }
    let outputs = outputs(encodings)?;
    for (name, out) in ExtendConfig::NAMES.iter().zip(&outputs[1..]) {
        let off = (out - &outputs[0])?.abs()?.max_all()?.to_scalar::<f32>()?;
        assert!(off > 1e-3, "{name}: {off:e}");
    }
    let message = ExtendConfig::new("yarn", 16, 40).expect_err("no such method").to_string();
    assert!(message.contains("yarn") && message.contains("self-extend"), "{message}");
    Ok(())
}

/// The farthest distance that a query of a text of `longest` tokens is placed at stays within the trained context.
#[test]
fn defaults_keep_distances_within_the_trained_context() -> Result<()> {
    for (trained, longest) in [(256, 256), (256, 512), (256, 2048), (2048, 32768), (48, 500)] {
        let ExtendConfig::SelfExtend(SelfExtendConfig { group, window }) =
            ExtendConfig::new("self-extend", trained, longest)?
        else {
            bail!("another method")
        };
        let farthest = |group: usize| (longest - 1) / group + window - window / group;
        assert_eq!(window, trained / 2);
        assert!(farthest(group) < trained, "{trained} {longest}: {group}");
        let smaller = (1..group).filter(|g| window.is_multiple_of(*g));
        assert!(smaller.into_iter().all(|g| farthest(g) >= trained));
        let ExtendConfig::LeakyReRope(LeakyReRopeConfig { window, factor }) =
            ExtendConfig::new("leaky-rerope", trained, longest)?
        else {
            bail!("another method")
        };
        let farthest = window as f64 + (longest - 1 - window) as f64 / factor;
        assert!(factor >= 1.0 && farthest <= (trained - 1) as f64 + 1e-9, "{trained} {longest}: {factor}");
    }
    let message = ExtendConfig::new("self-extend", 48, 1000).expect_err("too long").to_string();
    assert!(message.contains("1000 tokens are too many"), "{message}");
    Ok(())
}

/// A window needs no more of the cache than itself.
#[test]
fn a_window_bounds_the_cache() -> Result<()> {
    let vars = VarMap::new();
    let vb = VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu);
    let encoding = ExtendConfig::Window(WindowConfig { window: 6 }).build(RopeConfig::new(8, 1e4))?;
    let layer = MultiHeadAttention::new(&AttentionConfig::new(32, 4, 2), encoding, vb)?;
    settle(&vars)?;
    let xs = randn(0.0, 1.0, (1, T, 32))?;
    let (mut cache, mut outs) = (layer.new_cache(T), vec![]);
    for i in 0..T {
        outs.push(layer.forward(&xs.narrow(1, i, 1)?.detach(), &Positions::new(i..i + 1), Some(&mut cache))?);
    }
    let off = Tensor::cat(&outs, 1)? - layer.forward(&xs, &Positions::new(0..T), None)?;
    assert!(off?.abs()?.max_all()?.to_scalar::<f32>()? < 1e-5);
    assert!(cache.size_in_bytes() <= 2 * 2 * 8 * 12 * 4, "{}", cache.size_in_bytes());
    Ok(())
}

#[test]
fn senseless_numbers_are_refused_by_name() {
    let rope = || RopeConfig::new(8, 1e4);
    let refused = |config: ExtendConfig, part: &str| {
        let message = config.build(rope()).expect_err(part).to_string();
        assert!(message.contains(part) && message.contains(config.name()), "{message}");
    };
    refused(ExtendConfig::SelfExtend(SelfExtendConfig { group: 3, window: 8 }), "not a multiple of the group");
    refused(ExtendConfig::ReRope(ReRopeConfig { window: 0 }), "window");
    refused(ExtendConfig::LeakyReRope(LeakyReRopeConfig { window: 4, factor: 0.5 }), "factor");
    refused(ExtendConfig::DualChunk(DualChunkConfig { chunk: 4, local: 4 }), "local");
    refused(ExtendConfig::StringShift(StringShiftConfig { shift: 4, local: 5 }), "local");
    refused(ExtendConfig::Streaming(StreamingConfig { first: 0, window: 5 }), "first");
    assert!(ExtendConfig::new("rerope", 3, 100).is_err());
}

/// A method written out is read back as the same method with the same numbers.
#[test]
fn a_method_is_its_name_and_all_its_numbers() -> Result<()> {
    for name in ExtendConfig::NAMES {
        let method = ExtendConfig::new(name, 64, 512)?;
        let setting: Setting = method.to_string().parse().map_err(candle_core::Error::msg)?;
        let mut read = ExtendConfig::new(name, 4096, 8192)?;
        for (number, value) in setting.extend.params.iter().flatten() {
            read.set(number, *value)?;
        }
        assert_eq!(read, method, "{method}");
        assert_eq!(read.numbers().len(), super::method(name).map_or(0, |method| method.params.len()));
    }
    Ok(())
}
