//! From the command line to a loaded model: an embedded checkpoint, or one that the loader finds.
//!
//! This is the only file that knows how the loader is called.

use crate::embedded::Embedded;
use crate::memory;
use crate::options::{LoadArgs, ModelArgs};
use crate::output::{note, usage};
use crate::parse::{BosChoice, DeviceName, LengthPolicy};
use anyhow::{Context, Result};
use attn_core::machine;
use attn_eval::one_line;
use attn_models::config::{Notes, UnknownKeys};
use attn_models::memory::{Workload, weight_bytes};
use attn_models::spec::ModelSpec;
use attn_models::{Model, Options, RopeLength, families};
use candle_core::Device;
use loader::{Checkpoint, LoadOptions, Tokenizer};
use std::sync::Once;

/// A model ready to run, and the checkpoint it came from.
pub(crate) struct Opened {
    /// The model, under the overrides of the command line.
    pub(crate) model: Model,
    /// Config, tokenizer, chat template, origin.
    pub(crate) checkpoint: Checkpoint,
    /// What reports call it: MODEL with its resolved revision.
    pub(crate) name: String,
    /// Whether runs that would not fit into memory are refused.
    memory_checked: bool,
}

/// Opens MODEL and loads its weights under the command line's own position scaling.
///
/// # Errors
/// Anything the loader or the model refuses, and a device that isn't there.
pub(crate) fn open(args: &ModelArgs) -> Result<Opened> {
    open_checked(args, |_| Ok(()))
}

/// [`open`] as the checkpoint itself is, for commands that apply the scaling themselves.
///
/// # Errors
/// As [`open`].
pub(crate) fn open_plain(args: &ModelArgs) -> Result<Opened> {
    open_as(args, attn_core::PositionOverride::default(), |_| Ok(()))
}

/// [`open`], unless `check` refuses the checkpoint, before its weights are read.
///
/// # Errors
/// As [`open`]; whatever `check` fails with.
pub(crate) fn open_checked(args: &ModelArgs, check: impl FnOnce(&Checkpoint) -> Result<()>) -> Result<Opened> {
    open_as(args, args.rope.to_override()?, check)
}

fn open_as(
    args: &ModelArgs,
    positions: attn_core::PositionOverride,
    check: impl FnOnce(&Checkpoint) -> Result<()>,
) -> Result<Opened> {
    set_threads(args.load.threads)?;
    let device = device(args.load.device)?;
    let (checkpoint, name) = checkpoint(args.model.as_deref(), &args.load)?;
    check(&checkpoint)?;
    let opened = load_as(checkpoint, name, args, device, positions)?;
    for warning in opened.model.warnings() {
        note(&format!("warning: {}: {warning}", opened.name));
    }
    warn(&opened.name, opened.model.notes());
    Ok(opened)
}

/// Loads the weights of an opened checkpoint, as it is. What there is to say of them is left to the caller.
///
/// # Errors
/// The model refuses it, or it does not fit into memory.
pub(crate) fn load(checkpoint: Checkpoint, name: String, args: &ModelArgs, device: Device) -> Result<Opened> {
    load_as(checkpoint, name, args, device, attn_core::PositionOverride::default())
}

fn load_as(
    checkpoint: Checkpoint,
    name: String,
    args: &ModelArgs,
    device: Device,
    positions: attn_core::PositionOverride,
) -> Result<Opened> {
    let dtype = args.load.dtype();
    let memory_checked = !args.load.no_memory_check && matches!(device, Device::Cpu);
    if memory_checked {
        memory::check_weights(&name, weight_bytes(checkpoint.weights.as_ref(), dtype))?;
    }
    let (cache, unknown_keys) = (args.cache.types(), unknown_keys(&args.load));
    let options = Options { dtype, device, positions, cache, unknown_keys };
    let model = Model::load(&checkpoint.config, checkpoint.weights.clone(), &options)
        .with_context(|| format!("can't load {name}"))?;
    Ok(Opened { model, checkpoint, name, memory_checked })
}

/// What becomes of config keys that nothing reads.
pub(crate) fn unknown_keys(args: &LoadArgs) -> UnknownKeys {
    if args.allow_unknown_config_keys { UnknownKeys::Collect } else { UnknownKeys::Refuse }
}

/// Says what is worth knowing of the config of the model called `name`.
pub(crate) fn warn(name: &str, notes: &Notes) {
    if !notes.unknown.is_empty() {
        let keys = notes.unknown.join(", ");
        note(&format!("warning: {name}: unknown config keys are ignored, so the result may be wrong: {keys}"));
    }
    for line in &notes.ignored {
        note(&format!("warning: {name}: {line}"));
    }
}

/// The model as its config describes it, with a warning of what was passed over.
///
/// # Errors
/// The config can't be understood.
pub(crate) fn spec(config: &serde_json::Value, name: &str, args: &LoadArgs) -> Result<ModelSpec> {
    let read = families::spec_with(config, unknown_keys(args));
    let (spec, notes) = read.with_context(|| format!("can't read {name}"))?;
    warn(name, &notes);
    Ok(spec)
}

/// Opens MODEL without loading its weights, and names it for reports.
///
/// # Errors
/// Anything the loader refuses.
pub(crate) fn checkpoint(model: Option<&str>, args: &LoadArgs) -> Result<(Checkpoint, String)> {
    if let Some(embedded) = Embedded::find(model) {
        return Ok((embedded.open()?, format!("{} (embedded)", embedded.name)));
    }
    let model = model.unwrap_or_default();
    let checkpoint = Checkpoint::open(model, &load_options(args))?;
    let name = match &checkpoint.origin.commit {
        Some(commit) => format!("{}@{commit}", model.split('@').next().unwrap_or(model)),
        None => model.to_string(),
    };
    for warning in &checkpoint.warnings {
        note(&format!("warning: {name}: {warning}"));
    }
    Ok((checkpoint, name))
}

/// The loader's options for these flags.
fn load_options(args: &LoadArgs) -> LoadOptions {
    let mut options = LoadOptions {
        keep_quantized: args.keep_quantized,
        mmap: !args.no_mmap,
        unknown_keys: unknown_keys(args),
        ..Default::default()
    };
    options.hub.offline |= args.offline;
    options
}

/// Starts the threads that everything computes with.
///
/// # Errors
/// More than any machine has, or they can't be started.
pub(crate) fn set_threads(threads: Option<usize>) -> Result<()> {
    let Some(threads) = threads else { return Ok(()) };
    if threads > 1024 {
        return usage(format!("--threads {threads} is too many: at most 1024"));
    }
    tell_candle("RAYON_NUM_THREADS", threads);
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().context("can't start the threads")
}

/// Sets one of the variables from which Candle takes its numbers of threads; it has no other way to be told.
pub(crate) fn tell_candle(variable: &str, threads: usize) {
    // SAFETY: no thread that was started so early reads the environment but through std, which takes turns with this: the
    // one that waits for Ctrl-C reads none at all.
    unsafe { std::env::set_var(variable, threads.to_string()) }
}

/// Opens a device.
///
/// # Errors
/// This build or this machine doesn't have it.
pub(crate) fn device(name: DeviceName) -> Result<Device> {
    let missing = |what: &str, feature: &str| {
        usage(format!("--device {what}: this program was built without {what}; build it with --features {feature}"))
    };
    let device = match name {
        DeviceName::Cpu => Ok(Device::Cpu),
        DeviceName::Cuda(_) if !candle_core::utils::cuda_is_available() => missing("cuda", "cuda"),
        DeviceName::Metal if !candle_core::utils::metal_is_available() => missing("metal", "metal"),
        DeviceName::Cuda(index) => Device::new_cuda(index).with_context(|| format!("--device cuda:{index}")),
        DeviceName::Metal => Device::new_metal(0).context("--device metal"),
    }?;
    machine::keep_freed_memory(&device)?;
    Ok(device)
}

/// The checkpoint's tokenizer, with what it has to say.
///
/// # Errors
/// There is none that can be used.
pub(crate) fn tokenizer<'a>(checkpoint: &'a Checkpoint, name: &str) -> Result<&'a Tokenizer> {
    static SAID: Once = Once::new();
    let tokenizer = checkpoint.require_tokenizer()?;
    SAID.call_once(|| {
        for warning in &tokenizer.warnings {
            note(&format!("warning: {name}: {warning}"));
        }
    });
    Ok(tokenizer)
}

impl Opened {
    /// The checkpoint's tokenizer.
    ///
    /// # Errors
    /// As [`tokenizer`].
    pub(crate) fn tokenizer(&self) -> Result<&Tokenizer> {
        tokenizer(&self.checkpoint, &self.name)
    }

    /// The token to put before every window or prompt, if there is one.
    ///
    /// # Errors
    /// As [`bos_of`].
    pub(crate) fn bos(&self, choice: BosChoice) -> Result<Option<u32>> {
        bos_of(&self.checkpoint, choice, &self.name)
    }

    /// Bytes that the work takes beside the weights.
    pub(crate) fn needed_memory(&self, work: &Workload) -> u64 {
        self.model.spec().memory(work, self.model.dtype(), self.model.cache_types()).total()
    }

    /// Refuses a run over `tokens` tokens if `work`, which says what a run over so many asks of the model, does not fit into
    /// memory.
    ///
    /// # Errors
    /// It does not fit: what it takes, what there is, and how many tokens would fit.
    pub(crate) fn check_memory(&self, tokens: usize, work: impl Fn(usize) -> Workload) -> Result<()> {
        if !self.memory_checked {
            return Ok(());
        }
        memory::check_run(tokens, &|n| self.needed_memory(&work(n)))
    }

    /// Why a run over `tokens` does not fit into memory, if it does not; as [`check_memory`](Self::check_memory).
    pub(crate) fn fits(&self, tokens: usize, work: impl Fn(usize) -> Workload) -> Result<(), String> {
        self.check_memory(tokens, work).map_err(|error| one_line(error.as_ref()))
    }

    /// Refuses to keep `kept` bytes of what the model as it is predicts beside a run that asks `work` of it, if they don't
    /// fit into memory.
    ///
    /// # Errors
    /// They do not fit.
    pub(crate) fn check_kept(&self, kept: u64, work: &Workload) -> Result<()> {
        if kept == 0 || !self.memory_checked {
            return Ok(());
        }
        memory::check_kept(kept.saturating_add(self.needed_memory(work)))
    }

    /// A number of the config, such as `decoder_start_token_id`.
    pub(crate) fn config_id(&self, key: &str) -> Option<u32> {
        self.checkpoint.config.get(key)?.as_u64()?.try_into().ok()
    }
}

/// The token that begins a text under this choice: the tokenizer's own, or the checkpoint's BOS.
///
/// # Errors
/// It is asked for, and the checkpoint names none.
pub(crate) fn bos_of(checkpoint: &Checkpoint, choice: BosChoice, name: &str) -> Result<Option<u32>> {
    let named = || match checkpoint.tokenizer()?.and_then(|tokenizer| tokenizer.bos_id) {
        Some(bos) => anyhow::Ok(Some(bos)),
        None => Ok(checkpoint.generation.bos_id),
    };
    match choice {
        BosChoice::Off => Ok(None),
        BosChoice::Auto => Ok(checkpoint.require_tokenizer()?.begins_with()?),
        BosChoice::On => match named()? {
            Some(bos) => Ok(Some(bos)),
            None => usage(format!("--bos on: {name} has no BOS token")),
        },
    }
}

/// The policy for a session of `declared` tokens.
pub(crate) fn session_length(policy: Option<LengthPolicy>, declared: usize) -> RopeLength {
    match policy {
        None | Some(LengthPolicy::Declared) => RopeLength::Declared(declared),
        Some(LengthPolicy::Exact) => RopeLength::Exact,
        Some(LengthPolicy::Fixed(n)) => RopeLength::Declared(n),
    }
}

/// The length that a pass over a whole window resolves for; `None` is the window's own, which is both what is declared
/// and what is exact.
pub(crate) fn window_length(policy: Option<LengthPolicy>) -> Option<usize> {
    match policy {
        Some(LengthPolicy::Fixed(n)) => Some(n),
        _ => None,
    }
}
