//! The options that come to a recommended setting: of this program, and of those that serve models.

use crate::model::Opened;
use crate::ropes::Ropes;
use anyhow::Result;
use attn_core::PositionOverride;
use attn_core::position::PositionConfig;
use attn_eval::compare::{Answer, Applied, Factor, Plan, Recommendation, change, factor_at};
use attn_models::spec::ModelSpec;

/// The options for the setting that is recommended, and for each program that can't be told it, those of the best setting
/// that it can be told.
///
/// # Errors
/// The model doesn't take a setting that it was measured under.
pub(crate) fn applied(
    opened: &Opened,
    model: Option<&str>,
    plan: &Plan,
    found: &Recommendation,
) -> Result<Vec<Applied>> {
    if found.answer != Answer::Use || plan.factor == Factor::Auto {
        return Ok(vec![]);
    }
    let all = |mode: &str| Setting::new(opened, model, plan, mode, found.context);
    let first = all(&found.mode)?;
    let mut settings = vec![];
    for config in found.for_configs.iter().filter(|config| config.mode != found.mode) {
        settings.push(all(&config.mode)?);
    }
    let mut lines = vec![first.line("attn")];
    for program in ["export", "transformers", "vLLM", "llama.cpp"] {
        let takes = |setting: &&Setting| setting.takes(program);
        lines.push(std::iter::once(&first).chain(&settings).find(takes).unwrap_or(&first).line(program));
    }
    lines.retain(|line| !line.options.is_empty());
    // What belongs to one setting stands together, the recommended one first.
    let order: Vec<String> = lines.iter().map(|line| line.mode.clone()).collect();
    lines.sort_by_key(|line| order.iter().position(|mode| *mode == line.mode));
    Ok(lines)
}

/// One setting, and what the programs are told.
struct Setting {
    mode: String,
    options: Vec<(&'static str, String)>,
}

impl Setting {
    fn new(opened: &Opened, model: Option<&str>, plan: &Plan, name: &str, context: usize) -> Result<Self> {
        let mode = name.parse().map_err(anyhow::Error::msg)?;
        let change = change(plan, mode, factor_at(&opened.model, plan, context)?)?;
        let spec = opened.model.spec().with_positions(&change)?;
        let flags = flags(&change, &spec);
        let called = model.map_or(String::new(), |model| format!(" {model}"));
        let mut options = vec![("attn", format!("attn generate{called} {flags}"))];
        let config = &opened.checkpoint.config;
        let ropes = Ropes::of(&spec, name).and_then(|ropes| Ok((ropes.parameters(config)?, ropes)));
        if let (true, Ok((parameters, ropes))) = (change.extend.is_none(), ropes) {
            let dictionary = serde_json::to_string(&parameters)?;
            options.push(("export", format!("attn export{called} {flags} --out FOLDER")));
            let length = ropes.main().extended_context();
            let transformers = format!("\"rope_parameters\": {dictionary}, \"max_position_embeddings\": {length}");
            options.push(("transformers", transformers));
            options.push(("vLLM", ropes.vllm(config, &parameters, model.unwrap_or("MODEL"), context)));
            options.push(("llama.cpp", ropes.llama_cpp(context)));
        }
        Ok(Self { mode: name.to_string(), options })
    }

    /// Its options for a program, empty if there are none to speak of.
    fn of(&self, program: &str) -> &str {
        self.options.iter().find(|(name, _)| *name == program).map_or("", |(_, options)| options)
    }

    fn takes(&self, program: &str) -> bool {
        let options = self.of(program);
        !options.is_empty() && !options.contains('#')
    }

    fn line(&self, program: &str) -> Applied {
        Applied { mode: self.mode.clone(), program: program.to_string(), options: self.of(program).to_string() }
    }
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
