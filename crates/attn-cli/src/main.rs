//! The `attn` command: run real checkpoints and compare what position scalings do to them.
//!
//! Results go to stdout and everything else to stderr, so that output can be piped and redirected. Every failure is one
//! line that begins with `error:`; the exit code is 2 if the command was used wrongly, 1 if it failed, and 130 if Ctrl-C
//! ended it. A reader that goes away (`attn generate | head -1`) is no failure.

mod cli;
mod commands;
mod embedded;
mod ids;
mod measure;
mod memory;
mod model;
mod options;
mod output;
mod parse;
mod positions;
mod progress;
mod ropes;
mod serving;
mod template;
mod text;

use clap::{Parser, error::ErrorKind};
use cli::Cli;
use commands::generate::conversation;
use measure::long_run;
use output::{StdoutClosed, UsageError};
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = match Cli::try_parse_from(options::spelled_out(std::env::args_os())) {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    end_tidily_on_ctrl_c();
    match cli.command.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<StdoutClosed>() => ExitCode::SUCCESS,
        Err(error) => {
            output::note(&format!("error: {}", attn_eval::one_line(error.as_ref())));
            ExitCode::from(if error.is::<UsageError>() { 2 } else { 1 })
        }
    }
}

/// Ctrl-C removes half-written files and ends the program with code 130, as shells expect. Where the handler can't be
/// installed, Ctrl-C ends the program and its temporary files stay.
#[cfg(unix)]
fn end_tidily_on_ctrl_c() {
    use signal_hook::{consts::SIGINT, iterator::Signals};
    let Ok(mut signals) = Signals::new([SIGINT]) else { return };
    std::thread::spawn(move || signals.forever().for_each(|_| interrupted()));
}

/// The same where signals can't be waited for: Windows tells of Ctrl-C by a call, which sets a flag that a thread looks at.
#[cfg(windows)]
fn end_tidily_on_ctrl_c() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    const OFTEN: std::time::Duration = std::time::Duration::from_millis(50);
    let pressed = Arc::new(AtomicBool::new(false));
    if signal_hook::flag::register(signal_hook::consts::SIGINT, Arc::clone(&pressed)).is_err() {
        return;
    }
    std::thread::spawn(move || {
        loop {
            std::thread::sleep(OFTEN);
            if pressed.swap(false, Ordering::SeqCst) {
                interrupted();
            }
        }
    });
}

/// Ends the answer of a conversation, or else the program.
fn interrupted() {
    if !conversation::break_off() {
        output::remove_temporaries();
        long_run::say_interrupted();
        std::process::exit(130);
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
