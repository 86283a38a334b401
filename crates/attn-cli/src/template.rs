//! Chat templates, rendered in a process of their own.
//!
//! A template is a program that comes with a checkpoint and is not trusted. The interpreter bounds its steps and its
//! output, but not the memory of the values in between, nor the time that one step over a huge list takes. So `attn`
//! starts itself once more, hands the template over, and gives the child a fixed time, and on Linux a fixed address
//! space. Whatever a template does then ends in an error of one line.

use anyhow::{Context, Result, bail};
use loader::{ChatTemplate, Checkpoint, LoadError};
use serde::{Deserialize, Serialize};
use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The hidden command that renders.
pub(crate) const COMMAND: &str = "render-chat";
/// How long a template may take; real ones take milliseconds.
const PATIENCE: Duration = Duration::from_secs(5);
/// The child's address space, the program itself included.
#[cfg(target_os = "linux")]
const ADDRESS_SPACE: u64 = 1 << 30;

/// What the child gets.
#[derive(Serialize, Deserialize)]
struct Job {
    template: String,
    messages: Vec<(String, String)>,
    bos: String,
    eos: String,
}

/// What it answers.
#[derive(Serialize, Deserialize)]
enum Answer {
    Text(String),
    Error(String),
}

/// `messages`, pairs of role and text, as one prompt to `checkpoint`, up to where the answer begins.
///
/// # Errors
/// There is no template, or it refuses, fails, or asks for too much.
pub(crate) fn render(checkpoint: &Checkpoint, messages: &[(String, String)]) -> Result<String> {
    let template = checkpoint.require_chat_template()?;
    let (bos, eos) = checkpoint.text_ends()?;
    match ask(&Job { template: template.source().to_string(), messages: messages.to_vec(), bos, eos })? {
        Answer::Text(text) => Ok(text),
        Answer::Error(reason) => bail!(template.failure(&reason)),
    }
}

fn ask(job: &Job) -> Result<Answer> {
    const FAILED: &str = "can't start the process that renders the chat template";
    let program = std::env::current_exe().context(FAILED)?;
    let mut command = Command::new(program);
    command.arg(COMMAND).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().context(FAILED)?;
    let (input, output) = (child.stdin.take(), child.stdout.take());
    let job = serde_json::to_vec(job)?;
    // Both pipes are served by threads of their own, so that a child that does not read can't block the reading of its
    // answer.
    let writer = std::thread::spawn(move || input.map(|mut pipe| pipe.write_all(&job)));
    let reader = std::thread::spawn(move || {
        let mut bytes = vec![];
        output.map(|mut pipe| pipe.read_to_end(&mut bytes));
        bytes
    });
    let started = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().context(FAILED)? {
            break status;
        }
        if started.elapsed() > PATIENCE {
            child.kill().and_then(|()| child.wait()).context(FAILED)?;
            bail!(LoadError::ChatTemplate { reason: format!("it did not finish within {PATIENCE:?}") });
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    let _ = writer.join();
    let bytes = reader.join().unwrap_or_default();
    match serde_json::from_slice(&bytes) {
        Ok(answer) if status.success() => Ok(answer),
        _ => bail!(LoadError::ChatTemplate { reason: "it asks for more memory than a template may have".to_string() }),
    }
}

/// The child's side: limits itself, reads the job from stdin and answers on stdout.
///
/// # Errors
/// The limits can't be set, or a pipe is broken.
pub(crate) fn run() -> Result<()> {
    #[cfg(target_os = "linux")]
    {
        use rlimit::{Resource, setrlimit};
        setrlimit(Resource::AS, ADDRESS_SPACE, ADDRESS_SPACE)?;
        // Only for a child that outlives its parent.
        setrlimit(Resource::CPU, 3 * PATIENCE.as_secs(), 3 * PATIENCE.as_secs() + 1)?;
        setrlimit(Resource::CORE, 0, 0)?;
    }
    let mut bytes = vec![];
    std::io::stdin().lock().read_to_end(&mut bytes)?;
    let job: Job = serde_json::from_slice(&bytes)?;
    let answer = match ChatTemplate::new(&job.template).render(&job.messages, true, &job.bos, &job.eos) {
        Ok(text) => Answer::Text(text),
        Err(LoadError::ChatTemplate { reason }) => Answer::Error(reason),
        Err(other) => Answer::Error(other.to_string()),
    };
    std::io::stdout().lock().write_all(&serde_json::to_vec(&answer)?)?;
    Ok(())
}
