//! GPT-Neo: learned absolute positions, scores without a scale, windows on the layers marked local.

use super::parts::{Common, activation, plain, pre_norm};
use crate::config::Config;
use crate::spec::{LinearSpec, ModelSpec, NormSpec, QkvSpec, TableSpec};
use attn_core::position::{LearnedConfig, PositionConfig};
use candle_core::{Result, bail};
use serde_json::Value;

pub(super) fn spec(c: &Config) -> Result<ModelSpec> {
    let common = Common::read_mha(c)?.divided()?;
    let hidden = common.hidden_size;
    let inner = c.size_opt("intermediate_size")?.unwrap_or(4 * hidden);
    let eps = c.eps("layer_norm_epsilon", 1e-5)?;
    let act = activation(c, "activation_function", "gelu_new")?;
    let window = c.size_opt("window_size")?.unwrap_or(256);
    let local = local_layers(c, common.layers)?;
    c.mark(&["attention_layers", "resid_dropout", "embed_dropout"]);
    let rows = common.max_positions;
    let norm = |name: &str| NormSpec::layer(name, hidden, eps);
    let linear = |name: &str, i, o| LinearSpec::new(name, i, o);
    let layers = (0..common.layers).map(|i| {
        let mut attention = common.attention(false, super::parts::nope());
        let project = |name: &str| linear(&format!("attn.attention.{name}"), hidden, hidden);
        attention.qkv = QkvSpec::Separate { q: project("q_proj"), k: project("k_proj"), v: project("v_proj") };
        attention.out = project("out_proj").bias(true);
        attention.scale = 1.0;
        attention.mask = attention.mask.with_window(local[i].then_some(window));
        let up = linear("mlp.c_fc", hidden, inner).bias(true);
        let mlp = plain(up, linear("mlp.c_proj", inner, hidden).bias(true), act);
        pre_norm(format!("h.{i}."), attention, mlp, ["ln_1", "ln_2"].map(norm))
    });
    let tied = c.flag("tie_word_embeddings", true)?;
    let mut spec = common.decoder("gpt_neo", layers.collect(), norm("ln_f"), tied);
    let embedding = &mut spec.stack.embedding;
    embedding.tokens = "wte.weight".into();
    embedding.position = PositionConfig::Learned(LearnedConfig { rows, hidden, offset: 0 });
    embedding.position_table = Some(TableSpec::new("wpe.weight"));
    spec.prefixes = vec!["transformer.".into(), String::new()];
    spec.trained_context = Some(rows);
    Ok(spec)
}

/// Which layers have a window: `attention_types` lists kinds of layers and how often they repeat, and has to come out at
/// the number of layers.
fn local_layers(c: &Config, layers: usize) -> Result<Vec<bool>> {
    let kinds = |item: &Value| -> Option<Vec<bool>> {
        let [kinds, times] = item.as_array()?.as_slice() else { return None };
        let kinds = kinds.as_array()?.iter().map(|kind| match kind.as_str()? {
            "global" => Some(false),
            "local" => Some(true),
            _ => None,
        });
        let kinds = kinds.collect::<Option<Vec<_>>>()?;
        let times = usize::try_from(times.as_u64()?).ok()?;
        // No more than the model has layers, whatever the list says.
        (times <= layers && kinds.len() <= layers).then(|| kinds.repeat(times))
    };
    let listed = c.list("attention_types", 0, kinds)?.map(|lists| lists.concat());
    let listed = listed.unwrap_or_else(|| [false, true].repeat(12));
    if listed.len() != layers {
        bail!("config.json: attention_types describes {} layers, num_layers says {layers}", listed.len())
    }
    Ok(listed)
}
