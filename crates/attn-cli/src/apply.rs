//! The options that come to a recommended setting: of this program, and of those that serve models.

use crate::model::Opened;
use crate::ropes::Ropes;
use anyhow::Result;
use attn_core::PositionOverride;
use attn_core::position::PositionConfig;
use attn_eval::compare::{Answer, Applied, Factor, Plan, Recommendation, change, factor_at};
use attn_models::spec::ModelSpec;

/// The options for the setting that is recommended, and for the one that configs can say if that is another.
///
/// # Errors
/// The model doesn't take a setting that it was measured under.
pub(crate) fn applied(
    opened: &Opened,
    model: Option<&str>,
    plan: &Plan,
    found: &Recommendation,
) -> Result<Vec<Applied>> {
    let mut all = vec![];
    if found.answer != Answer::Use || plan.factor == Factor::Auto {
        return Ok(all);
    }
    let modes = [Some(&found.mode), found.for_configs.as_ref()];
    for name in modes.into_iter().flatten() {
        let Ok(mode) = name.parse() else { continue };
        let change = change(plan, mode, factor_at(&opened.model, plan, found.context)?)?;
        let spec = opened.model.spec().with_positions(&change)?;
        all.extend(of_setting(opened, model, name, &change, &spec, found.context)?);
    }
    Ok(all)
}

fn of_setting(
    opened: &Opened,
    model: Option<&str>,
    name: &str,
    change: &PositionOverride,
    spec: &ModelSpec,
    context: usize,
) -> Result<Vec<Applied>> {
    let flags = flags(change, spec);
    let called = model.map_or(String::new(), |model| format!(" {model}"));
    let to = |program: &str, options: String| Applied { mode: name.to_string(), program: program.into(), options };
    let mut all = vec![to("attn", format!("attn generate{called} {flags}"))];
    let Ok(ropes) = Ropes::of(spec, name).and_then(|ropes| Ok((ropes.parameters(&opened.checkpoint.config)?, ropes)))
    else {
        return Ok(all);
    };
    if !change.extend.is_none() {
        return Ok(all);
    }
    let (parameters, ropes) = ropes;
    let served = model.unwrap_or("MODEL");
    all.push(to("export", format!("attn export{called} {flags} --out FOLDER")));
    let dictionary = serde_json::to_string(&parameters)?;
    all.push(to("transformers", format!("\"rope_parameters\": {dictionary}, \"max_position_embeddings\": {context}")));
    all.push(to("vLLM", ropes.vllm(&opened.checkpoint.config, &parameters, served, context)));
    all.push(to("llama.cpp", ropes.llama_cpp(context)));
    Ok(all)
}

/// The setting as options of this program, a method's numbers written out.
fn flags(change: &PositionOverride, spec: &ModelSpec) -> String {
    let method = spec.stack.layers.iter().find_map(|layer| match layer.attention.position() {
        PositionConfig::Extended(config) => config.method.map(|method| method.to_string()),
        _ => None,
    });
    let scaling = change.rope.scaling.clone().filter(|scaling| scaling != "none" || method.is_none());
    let log_n = change.extend.log_n.then(|| attn_core::position::extend::LOG_N.to_string());
    let name: Vec<String> = [scaling, method, log_n].into_iter().flatten().collect();
    let mut flags = vec![];
    if !name.is_empty() {
        flags.push(format!("--rope-scaling {}", name.join("+")));
    }
    let rope = &change.rope;
    flags.extend(rope.factor.map(|factor| format!("--rope-factor {factor}")));
    flags.extend(rope.theta.map(|theta| format!("--rope-theta {theta}")));
    flags.extend(rope.original_context.map(|n| format!("--rope-original-context {n}")));
    flags.extend(rope.params.iter().map(|(key, value)| format!("--rope-param {key}={value}")));
    flags.join(" ")
}
