//! Every golden model: logits in one prefill and token by token, and greedy continuations, against transformers.

use attn_models::{Architecture, Model, Options, RopeLength, Session};
use candle_core::{DType, Device, IndexOp, Result, Tensor};
use std::{collections::HashMap, path::PathBuf, sync::Arc};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("golden/models")
}

struct Golden {
    model: Model,
    expected: HashMap<String, Tensor>,
}

fn load(name: &str) -> Result<Golden> {
    let dir = root().join(name);
    let config = std::fs::read_to_string(dir.join("config.json"))?;
    let config: serde_json::Value = serde_json::from_str(&config).map_err(candle_core::Error::wrap)?;
    let weights = candle_core::safetensors::load(dir.join("model.safetensors"), &Device::Cpu)?;
    let model = Model::load(&config, Arc::new(weights), &Options::default())?;
    Ok(Golden { model, expected: candle_core::safetensors::load(dir.join("expected.safetensors"), &Device::Cpu)? })
}

fn difference(a: &Tensor, b: &Tensor) -> f32 {
    let d = (a - b).and_then(|d| d.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>());
    d.unwrap_or(f32::INFINITY)
}

impl Golden {
    fn ids(&self, name: &str) -> Tensor {
        self.expected[name].to_dtype(DType::U32).unwrap()
    }

    fn start(&self, length: RopeLength) -> Session {
        let mut session = Session::new(&self.model, length, None).unwrap();
        if self.model.architecture() == Architecture::EncoderDecoder {
            session.encode(&self.ids("input_ids"), None).unwrap();
        }
        session
    }

    fn fed(&self) -> Tensor {
        match self.model.architecture() {
            Architecture::EncoderDecoder => self.ids("decoder_input_ids"),
            _ => self.ids("input_ids"),
        }
    }

    /// Feeds the tokens in blocks of `n` under the declared length.
    fn in_blocks(&self, n: usize) -> Tensor {
        let ids = self.fed();
        let t = ids.dim(1).unwrap();
        let mut session = self.start(RopeLength::Declared(t));
        let blocks = (0..t).step_by(n).map(|at| session.feed_all(&ids.narrow(1, at, n.min(t - at)).unwrap()).unwrap());
        Tensor::cat(&blocks.collect::<Vec<_>>(), 1).unwrap()
    }
}

fn check(name: &str) {
    let golden = load(name).unwrap_or_else(|e| panic!("{name}: {e}"));
    if golden.model.architecture() == Architecture::Encoder {
        let ids = golden.ids("input_ids");
        let hidden = golden.model.hidden(&ids, ids.dim(1).unwrap(), None).unwrap();
        let diff = difference(&hidden, &golden.expected["hidden"]);
        assert!(diff < 1e-3, "{name}: hidden states differ by {diff}");
        return;
    }
    let logits = &golden.expected["logits"];
    for n in [usize::MAX >> 1, 1, 5, 11] {
        let diff = difference(&golden.in_blocks(n), logits);
        println!("{name} in blocks of {n}: {diff}");
        assert!(diff < 1e-3, "{name}: logits differ by {diff} in blocks of {n}");
    }
    if let Some(greedy) = golden.expected.get("greedy") {
        let greedy = greedy.to_dtype(DType::U32).unwrap();
        let prompt = greedy.dim(1).unwrap() - 16;
        let mut session = golden.start(RopeLength::Exact);
        let mut logits = session.feed(&greedy.narrow(1, 0, prompt).unwrap()).unwrap();
        for at in prompt..prompt + 16 {
            let next = Model::greedy(&logits).unwrap();
            let want = greedy.i((.., at)).unwrap().to_vec1::<u32>().unwrap();
            assert_eq!(next.flatten_all().unwrap().to_vec1::<u32>().unwrap(), want, "{name}: greedy token {at}");
            logits = session.feed(&next).unwrap();
        }
    }
}

macro_rules! golden {
    ($($test:ident: $name:literal,)*) => {
        $(#[test] fn $test() { check($name); })*

        #[test]
        fn every_golden_model_has_a_test() {
            let mut found: Vec<String> = std::fs::read_dir(root()).unwrap()
                .map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
            found.sort();
            let mut tested = vec![$($name.to_string()),*];
            tested.sort();
            assert_eq!(found, tested);
        }
    };
}

golden! {
    bert: "bert",
    bloom: "bloom",
    bloom_6_heads: "bloom-6-heads",
    cohere_interleaved: "cohere-interleaved",
    deepseek_v3: "deepseek-v3",
    falcon_alibi: "falcon-alibi",
    gemma: "gemma",
    gemma2: "gemma2",
    gemma3: "gemma3",
    gpt_neox: "gpt-neox",
    gpt2: "gpt2",
    gptj_interleaved: "gptj-interleaved",
    granite: "granite",
    llama: "llama",
    llama_dynamic: "llama-dynamic",
    llama_head_dim: "llama-head-dim",
    llama_linear: "llama-linear",
    llama_longrope: "llama-longrope",
    llama_v4_config: "llama-v4-config",
    llama_yarn: "llama-yarn",
    llama3: "llama3",
    llama4_irope: "llama4-irope",
    mistral_window: "mistral-window",
    mpt: "mpt",
    olmo2: "olmo2",
    phi: "phi",
    phi3_longrope: "phi3-longrope",
    qwen2: "qwen2",
    qwen2_yarn: "qwen2-yarn",
    qwen3: "qwen3",
    smollm3_nope: "smollm3-nope",
    stablelm: "stablelm",
    t5: "t5",
}
