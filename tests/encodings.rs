//! Trained encodings and score forms, values and gradients, against the papers' formulas written out over dense matrices in
//! f64.

use attn_core::position::{
    BiasContext, Context, Cope, Fire, FireParts, Fox, Kerple, KerpleKernel, Nope, Sandwich, SandwichConfig, Ssmax,
    Xpos, XposConfig,
};
use attn_core::{AttendArgs, Linear, Mask, PositionEncoding, Positions, RopeConfig, ScoreBias, Scores, Stored, attend};
use candle_core::{DType, Device, Result, Tensor, Var};
use std::{collections::HashMap, sync::Arc};

const HEADS: usize = 4;
const DIM: usize = 16;

type Vars = HashMap<String, Var>;

/// One attention call under an encoding, as a layer makes it.
fn run(encoding: &dyn PositionEncoding, vars: &Vars, hidden: Option<&Tensor>) -> Result<Tensor> {
    let t = vars["q"].dim(2)?;
    let positions = Positions::new(0..t);
    let at = Context::new(&positions).with_hidden(hidden);
    let (q, k) = (encoding.queries(&vars["q"], &at)?, encoding.keys(&vars["k"], &at)?);
    let remembered = encoding.remember(&at, None)?;
    let scale = (DIM as f64).powf(-0.5);
    let keys = Stored::from(&k);
    let context =
        BiasContext::new(at, 0..t).with_products(Some(&q), Some(&keys), scale).with_remembered(remembered.as_ref());
    let scores = Scores::new(scale).with_bias(encoding.bias(&context)?).with_sinks(encoding.sinks());
    attend(&q, &k, &vars["v"], &AttendArgs::new(scores).with_mask(Mask::causal()))
}

/// Loads a golden file, runs `attention` in f32 and compares its output and every gradient.
fn check(name: &str, attention: impl Fn(&Vars) -> Result<Tensor>) -> Result<()> {
    let path = format!("{}/golden/encodings/{name}.safetensors", env!("CARGO_MANIFEST_DIR"));
    let golden = candle_core::safetensors::load(path, &Device::Cpu)?;
    let inputs = golden.keys().filter(|key| golden.contains_key(&format!("grad_{key}")));
    let vars = inputs.map(|key| Ok((key.clone(), Var::from_tensor(&golden[key].to_dtype(DType::F32)?)?)));
    let vars = vars.collect::<Result<Vars>>()?;
    let out = attention(&vars)?;
    let grads = (&out * golden["w"].to_dtype(DType::F32)?)?.sum_all()?.backward()?;
    let close = |what: &str, got: &Tensor, expected: &Tensor| -> Result<()> {
        let off = (got.to_dtype(DType::F64)? - expected)?.abs()?.flatten_all()?.max(0)?.to_scalar::<f64>()?;
        let size = expected.abs()?.flatten_all()?.max(0)?.to_scalar::<f64>()?.max(1.0);
        assert!(off < 1e-4 * size, "{name}: {what} is off by {off:e} of {size:e}");
        Ok(())
    };
    close("the output", &out, &golden["out"])?;
    for (key, var) in &vars {
        let grad = grads.get(var).unwrap_or_else(|| panic!("{name}: no gradient reaches {key}"));
        close(&format!("the gradient of {key}"), grad, &golden[&format!("grad_{key}")])?;
    }
    Ok(())
}

fn nope() -> Arc<dyn PositionEncoding> {
    Arc::new(Nope::default())
}

fn tensor(vars: &Vars, name: &str) -> Tensor {
    vars[name].as_tensor().clone()
}

#[test]
fn kerple() -> Result<()> {
    for (name, kernel) in [("kerple-log", KerpleKernel::Logarithmic), ("kerple-power", KerpleKernel::Power)] {
        check(name, |vars| run(&Kerple::from_tensors(kernel, tensor(vars, "r1"), tensor(vars, "r2"))?, vars, None))?;
    }
    Ok(())
}

#[test]
fn fire() -> Result<()> {
    check("fire", |vars| {
        let parts = FireParts {
            c: tensor(vars, "c"),
            threshold: tensor(vars, "m"),
            hidden_weight: tensor(vars, "w1"),
            hidden_bias: tensor(vars, "b1"),
            out_weight: tensor(vars, "w2"),
            out_bias: tensor(vars, "b2"),
        };
        run(&Fire::from_parts(parts)?, vars, None)
    })
}

#[test]
fn sandwich() -> Result<()> {
    let sandwich = Sandwich::new(SandwichConfig::new(HEADS), &Device::Cpu)?;
    check("sandwich", |vars| run(&sandwich, vars, None))
}

/// The gates' logits are the hidden states themselves, through a projection that changes nothing.
#[test]
fn fox() -> Result<()> {
    check("fox", |vars| {
        let hidden = vars["f"].transpose(1, 2)?.contiguous()?;
        let gate = Linear::new(Tensor::eye(HEADS, DType::F32, &Device::Cpu)?, None)?;
        run(&Fox::from_gate(gate), vars, Some(&hidden))
    })
}

#[test]
fn sinks() -> Result<()> {
    #[derive(Debug)]
    struct Sinks(Tensor);
    impl PositionEncoding for Sinks {
        fn sinks(&self) -> Option<Tensor> {
            Some(self.0.clone())
        }
    }
    check("sinks", |vars| run(&Sinks(tensor(vars, "s")), vars, None))
}

#[test]
fn ssmax() -> Result<()> {
    check("ssmax", |vars| run(&Ssmax::from_scale(nope(), tensor(vars, "s"))?, vars, None))
}

#[test]
fn xpos() -> Result<()> {
    for center in [0, 20] {
        let config = XposConfig { center, ..XposConfig::new(RopeConfig::new(DIM, 1e4)) };
        let xpos = Xpos::new(config)?;
        check("xpos", |vars| run(&xpos, vars, None))?;
    }
    Ok(())
}

#[test]
fn row_bank() -> Result<()> {
    #[derive(Debug)]
    struct RowBank(Tensor, Tensor);
    impl PositionEncoding for RowBank {
        fn bias(&self, _: &BiasContext) -> Result<ScoreBias> {
            // The file's bank is ordered by query position minus key position, `ScoreBias::RowBank` by the opposite.
            let n = self.1.dim(2)? as i64;
            let order = Tensor::from_iter((0..n as u32).rev(), &Device::Cpu)?;
            let bank = self.1.index_select(&order, 2)?;
            Ok(ScoreBias::RowBank { rows: self.0.clone(), bank, first: 1 - n })
        }
    }
    check("row-bank", |vars| run(&RowBank(tensor(vars, "r"), tensor(vars, "bank")), vars, None))
}

#[test]
fn cope() -> Result<()> {
    check("cope", |vars| run(&Cope::from_table(tensor(vars, "e"))?, vars, None))
}

#[test]
fn learned_alibi() -> Result<()> {
    #[derive(Debug)]
    struct LearnedAlibi(Tensor);
    impl PositionEncoding for LearnedAlibi {
        fn bias(&self, _: &BiasContext) -> Result<ScoreBias> {
            Ok(ScoreBias::Linear { slopes: self.0.clone() })
        }
    }
    check("learned-alibi", |vars| run(&LearnedAlibi(tensor(vars, "m")), vars, None))
}
