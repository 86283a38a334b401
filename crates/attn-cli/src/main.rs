//! The `attn` command: run real checkpoints and compare what position scalings do to them.
//!
//! Results go to stdout and everything else to stderr, so that output can be piped and redirected. Every failure is one
//! line that begins with `error:`; the exit code is 2 if the command was used wrongly, 1 if it failed, and 130 if Ctrl-C
//! ended it. A reader that goes away (`attn generate | head -1`) is no failure.

mod about;
mod apply;
mod args;
mod bench;
mod compare;
mod completions;
mod conversation;
mod download;
mod embedded;
mod estimate;
mod explain;
mod export;
mod generate;
mod ids;
mod inspect;
mod lab_args;
mod logits;
mod long_run;
mod memory;
mod merge;
mod metrics;
mod model;
mod output;
mod parse;
mod perplexity;
mod playground;
mod present;
mod progress;
mod protocol;
mod retrieval;
mod ropes;
mod serving;
mod template;
mod text;
mod train;

use args::{Cli, Command};
use attn_eval::retrieval::Task;
use clap::{Parser, error::ErrorKind};
use output::{StdoutClosed, UsageError};
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    end_tidily_on_ctrl_c();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<StdoutClosed>() => ExitCode::SUCCESS,
        Err(error) => {
            output::note(&format!("error: {}", output::one_line(&error)));
            ExitCode::from(if error.is::<UsageError>() { 2 } else { 1 })
        }
    }
}

/// Ctrl-C leaves no file half-written and is code 130, as shells have it. Without a handler it ends the program all the
/// same, only less tidily.
#[cfg(unix)]
fn end_tidily_on_ctrl_c() {
    use signal_hook::{consts::SIGINT, iterator::Signals};
    let Ok(mut signals) = Signals::new([SIGINT]) else { return };
    std::thread::spawn(move || {
        // In a conversation the first one only ends the answer.
        if signals.forever().any(|_| !conversation::break_off()) {
            output::remove_temporaries();
            long_run::say_interrupted();
            std::process::exit(130);
        }
    });
}

#[cfg(not(unix))]
fn end_tidily_on_ctrl_c() {}

fn run(cli: Cli) -> anyhow::Result<()> {
    match cli.command {
        Command::Generate(args) if conversation::is_meant(&args) => conversation::run(&args),
        Command::Generate(args) => generate::run(&args),
        Command::Perplexity(args) => perplexity::run(&args),
        Command::Compare(args) => compare::run(&args),
        Command::Retrieval(args) => retrieval::run(&args, Task::defaults()),
        Command::Passkey(args) => retrieval::run(&args, Task::named("passkey").unwrap_or_default()),
        Command::Export(args) => export::run(&args),
        Command::Merge(args) => merge::run(&args),
        Command::Train(args) => train::run(&args),
        Command::Logits(args) => logits::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Explain(args) => explain::run(&args),
        Command::Playground(args) => playground::run(&args),
        Command::Download(args) => download::run(&args),
        Command::Completions(args) => completions::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::RenderChat => template::run(),
    }
}

/// Help and version as clap prints them; everything else in one line.
fn usage(error: &clap::Error) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            let _ = error.print();
            ExitCode::SUCCESS
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
            ExitCode::from(2)
        }
        _ => {
            output::note(&output::usage_line(&error.to_string()));
            ExitCode::from(2)
        }
    }
}
