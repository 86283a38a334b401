//! What a report says about a comparison beside its figures: the model's files, the texts, the settings, the machine.

use crate::model::Opened;
use crate::options::ModelArgs;
use crate::parse::{BosChoice, DeviceName};
use crate::positions;
use anyhow::Result;
use attn_eval::compare::{Factor, Plan, factor_at};
use attn_eval::report::{About, CheckpointInfo, FileInfo, Machine, RopeSettings, Settings, TextInfo, Versions};
use loader::sha256;
use std::time::{SystemTime, UNIX_EPOCH};

/// Everything about a comparison. Reads the model's files once, for their digests.
///
/// # Errors
/// One of the files can't be read.
pub(crate) fn about(
    opened: &Opened,
    args: &ModelArgs,
    bos: BosChoice,
    plan: &Plan,
    texts: Vec<TextInfo>,
) -> Result<About> {
    Ok(About {
        command: std::env::args_os().map(|arg| arg.to_string_lossy().into_owned()).collect(),
        started: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        versions: versions(),
        checkpoint: checkpoint(opened)?,
        models: vec![],
        texts,
        settings: settings(opened, args, bos, plan),
        machines: vec![machine()],
    })
}

/// This program's version and that of the tensor library in it.
pub(crate) fn versions() -> Versions {
    Versions { attn: env!("CARGO_PKG_VERSION").to_string(), candle: env!("CANDLE_VERSION").to_string() }
}

/// The model's files and what they are of. Reads the files, for their digests.
///
/// # Errors
/// One of them can't be read.
pub(crate) fn checkpoint(opened: &Opened) -> Result<CheckpointInfo> {
    let origin = &opened.checkpoint.origin;
    let mut files = vec![];
    for file in &origin.files {
        files.push(FileInfo { name: file.name.clone(), bytes: file.size, sha256: file.sha256()? });
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    let digest = match files.as_slice() {
        [file] => file.sha256.clone(),
        files => {
            let lines: String = files.iter().map(|file| format!("{}  {}\n", file.sha256, file.name)).collect();
            sha256(lines.as_bytes())
        }
    };
    Ok(CheckpointInfo {
        name: opened.name.clone(),
        revision: origin.commit.clone(),
        sha256: digest,
        files,
        family: opened.model.spec().family.to_string(),
        parameters: opened.model.parameters(),
        trained_context: opened.model.trained_context(),
        rope_type: positions::scaling(&opened.model).0,
    })
}

fn settings(opened: &Opened, args: &ModelArgs, bos: BosChoice, plan: &Plan) -> Settings {
    Settings {
        modes: plan.modes.iter().map(ToString::to_string).collect(),
        contexts: plan.contexts.clone(),
        // The same for all lengths, if it is.
        factor: match (plan.factor, plan.contexts.iter().max()) {
            (Factor::Auto, _) | (_, None) => None,
            (_, Some(&longest)) => factor_at(&opened.model, plan, longest).ok(),
        },
        stride: plan.stride,
        bos: plan.bos,
        bos_choice: Some(bos.name().to_string()),
        length: plan.length,
        seed: plan.seed,
        rope: RopeSettings {
            theta: plan.rope.theta,
            original_context: plan.rope.original_context,
            params: plan.rope.params.iter().cloned().collect(),
        },
        dtype: format!("{:?}", opened.model.dtype()).to_lowercase(),
        device: match args.load.device {
            DeviceName::Cpu => "cpu",
            DeviceName::Cuda(_) => "cuda",
            DeviceName::Metal => "metal",
        }
        .to_string(),
        keep_quantized: args.load.keep_quantized,
        cache_type_k: args.cache.cache_type_k.map(|kind| kind.to_string()),
        cache_type_v: args.cache.cache_type_v.map(|kind| kind.to_string()),
        metrics: None,
        usable: !plan.between.is_empty(),
        skipped: vec![],
        retrieval: None,
    }
}

fn machine() -> Machine {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    Machine {
        os: std::env::consts::OS.to_string(),
        arch: std::env::consts::ARCH.to_string(),
        cpu: model.map(|(_, name)| name.trim().to_string()),
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        threads: rayon::current_num_threads(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tensor_librarys_version_is_found() {
        let candle = versions().candle;
        assert!(
            candle.split('.').count() == 3 && candle.split('.').all(|part| part.parse::<u32>().is_ok()),
            "{candle}"
        );
    }
}
