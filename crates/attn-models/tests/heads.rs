//! A head of its own in the checkpoint of a model whose config ties it to the embedding.
#![allow(missing_docs)]

use attn_models::{Model, Options, TensorSource};
use candle_core::{DType, Device, Tensor};
use serde_json::json;
use std::{collections::HashMap, sync::Arc};

fn load(head: Option<Tensor>) -> Model {
    let config = json!({"model_type": "llama", "vocab_size": 8, "hidden_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "intermediate_size": 16, "tie_word_embeddings": true});
    let random = |rows: usize, columns: usize| Tensor::randn(0f32, 1.0, (rows, columns), &Device::Cpu).unwrap();
    let mut tensors = HashMap::new();
    let mut add = |name: &str, tensor: Tensor| tensors.insert(name.to_string(), tensor);
    add("model.embed_tokens.weight", embedding());
    for name in ["model.norm", "model.layers.0.input_layernorm", "model.layers.0.post_attention_layernorm"] {
        add(&format!("{name}.weight"), Tensor::ones(16, DType::F32, &Device::Cpu).unwrap());
    }
    for name in ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"] {
        add(&format!("model.layers.0.{name}.weight"), random(16, 16));
    }
    for name in ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"] {
        add(&format!("model.layers.0.{name}.weight"), random(16, 16));
    }
    if let Some(head) = head {
        add("lm_head.weight", head);
    }
    let source: Arc<dyn TensorSource> = Arc::new(tensors);
    Model::load(&config, source, &Options::default()).unwrap()
}

fn embedding() -> Tensor {
    Tensor::arange(0f32, 128.0, &Device::Cpu).unwrap().reshape((8, 16)).unwrap()
}

#[test]
fn another_head_is_kept_with_a_warning_and_the_same_one_is_tied() {
    let ids = Tensor::new(&[[1u32, 2, 3]], &Device::Cpu).unwrap();
    for head in [None, Some(embedding())] {
        let model = load(head);
        assert!(model.warnings().is_empty());
        assert!(model.logits(&ids, 3).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap() > 0.0);
    }
    // Logits of zero show that the checkpoint's head of zeros is used.
    let model = load(Some(embedding().zeros_like().unwrap()));
    assert!(model.warnings()[0].contains("lm_head.weight"), "{:?}", model.warnings());
    assert_eq!(model.logits(&ids, 3).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap(), 0.0);
}
