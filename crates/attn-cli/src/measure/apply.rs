//! The options that set a recommended setting, in this program and in programs that serve models.

use crate::model::Opened;
use crate::ropes::Ropes;
use anyhow::Result;
use attn_core::PositionOverride;
use attn_core::position::PositionConfig;
use attn_eval::compare::{Answer, Applied, Factor, Plan, Recommendation, change, factor_at};
use attn_eval::search::flags;
use attn_models::spec::ModelSpec;

/// The options for the recommended setting, and for each program that cannot express it, those of the best setting that
/// it can express.
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

/// One setting, and the options of each program for it.
struct Setting {
    mode: String,
    options: Vec<(&'static str, String)>,
}

impl Setting {
    fn new(opened: &Opened, model: Option<&str>, plan: &Plan, name: &str, context: usize) -> Result<Self> {
        let mode = name.parse().map_err(anyhow::Error::msg)?;
        let change = change(plan, mode, factor_at(&opened.model, plan, context)?)?;
        let spec = opened.model.spec().with_positions(&change)?;
        let flags = flags(&written_out(&change, &spec)?).join(" ");
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
            options.push(("vLLM", ropes.vllm(config, model.unwrap_or("MODEL"), context)));
            options.push(("llama.cpp", ropes.llama_cpp(context)));
        }
        Ok(Self { mode: name.to_string(), options })
    }

    /// Its options for a program, empty if there are none.
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

/// The change with the numbers of its method, which it may leave to their defaults, written out: they depend on the longest
/// text, which another command doesn't know.
fn written_out(change: &PositionOverride, spec: &ModelSpec) -> Result<PositionOverride> {
    let mut change = change.clone();
    let method = spec.stack.layers.iter().find_map(|layer| match layer.attention.position() {
        PositionConfig::Extended(config) => config.method,
        _ => None,
    });
    for (name, value) in method.iter().flat_map(|method| method.numbers()) {
        change.extend = change.extend.with_param(name, &value.to_string())?;
    }
    // A method runs without a scaling unless one is named.
    change.rope.scaling = change.rope.scaling.filter(|scaling| method.is_none() || scaling != "none");
    Ok(change)
}
