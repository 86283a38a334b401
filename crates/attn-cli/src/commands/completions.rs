//! `attn completions`: completions for shells and pages for `man`, made from the definition of the command line.

use crate::output::{print, usage};
use crate::parse::CompletionFormat;
use anyhow::Result;
use clap::Args;
use clap_complete::{Shell, generate};
use clap_mangen::Man;

/// `attn completions`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  attn completions bash > ~/.local/share/bash-completion/completions/attn
  attn completions man compare | man -l -")]
pub(crate) struct CompletionsArgs {
    /// Shell to print completions for, or man for manual pages
    #[arg(value_enum)]
    pub(crate) format: CompletionFormat,
    /// Command that the manual page describes [default: all commands]
    pub(crate) command: Option<String>,
}

/// Runs the command; `command` is the definition of the command line.
///
/// # Errors
/// There is no such command to describe, or stdout can't be written.
pub(crate) fn run(args: &CompletionsArgs, mut command: clap::Command) -> Result<()> {
    command.build();
    let shell = match args.format {
        CompletionFormat::Bash => Shell::Bash,
        CompletionFormat::Elvish => Shell::Elvish,
        CompletionFormat::Fish => Shell::Fish,
        CompletionFormat::Powershell => Shell::PowerShell,
        CompletionFormat::Zsh => Shell::Zsh,
        CompletionFormat::Man => return manual(command, args.command.as_deref()),
    };
    if args.command.is_some() {
        return usage("COMMAND can only be given with man: completions cover all commands");
    }
    let mut script = vec![];
    generate(shell, &mut command, "attn", &mut script);
    print(&String::from_utf8_lossy(&script))
}

/// The page of one command, or those of all, the program's own first.
fn manual(command: clap::Command, only: Option<&str>) -> Result<()> {
    let pages: Vec<clap::Command> = match only {
        Some(name) => match command.find_subcommand(name) {
            Some(found) => vec![found.clone()],
            None => return usage(format!("there is no command {name:?} to describe")),
        },
        None => {
            let shown = command.get_subcommands().filter(|sub| !sub.is_hide_set()).cloned();
            std::iter::once(command.clone()).chain(shown).collect()
        }
    };
    let mut text = vec![];
    for page in pages {
        // As clap writes it in usage lines: the program's name before the command's.
        let name = page.get_bin_name().unwrap_or("attn").replace(' ', "-");
        Man::new(page).title(name).render(&mut text)?;
    }
    print(&String::from_utf8_lossy(&text))
}
