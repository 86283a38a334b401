//! `attn compare`: one model, one text, several position scalings.

use crate::args::CompareArgs;
use crate::model::{self, Opened};
use crate::output::{check_writable, color, note, print, print_json, usage, width, wrap, write_file};
use crate::perplexity::tokens;
use crate::progress::Progress;
use crate::{inspect, text};
use anyhow::Result;
use attn_eval::compare::{Factor, Mode, Plan, compare};
use attn_eval::perplexity::Cell;
use attn_eval::report::{Document, TableStyle, csv, svg, table, verdict};

/// Tokens of the text that are used unless more are asked for, so that a first look takes seconds.
const DEFAULT_TOKENS: usize = 8192;

/// Runs the command.
///
/// # Errors
/// The model or the text can't be read, a context or mode doesn't fit them, or a file can't be written.
pub(crate) fn run(args: &CompareArgs) -> Result<()> {
    check(args)?;
    let (text_name, text) = text::read(args.text.text.as_deref())?;
    let opened = model::open_plain(&args.model)?;
    let mut tokens = tokens(&opened, &text, &args.text)?;
    if args.text.max_tokens.is_none() {
        tokens.truncate(default_tokens(args, &opened));
    }
    let plan = plan(args, &opened, tokens.len())?;
    hint(args, &opened, &plan);
    let mut progress = Progress::new();
    let cells = compare(&opened.model, &tokens, &plan, &mut |at| {
        progress.set(at.done, at.total, &format!("{} at {}", at.mode, at.context));
    })?;
    drop(progress);
    write_files(args, &opened, &cells)?;
    if args.json {
        return print_json(&Document { model: &opened.name, text: &text_name, cells: &cells });
    }
    print(&report(&opened, &text_name, tokens.len(), &cells))
}

/// What can be known to be wrong before anything is loaded.
fn check(args: &CompareArgs) -> Result<()> {
    if args.model.rope.rope_scaling.is_some() || args.model.rope.rope_factor.is_some() {
        return usage("compare sets the scaling itself: use --modes and --factor");
    }
    for path in args.csv.iter().chain(&args.plot) {
        check_writable(path)?;
    }
    if let Some(plot) = &args.plot
        && plot.extension().is_some_and(|extension| !extension.eq_ignore_ascii_case("svg"))
    {
        return usage(format!("--plot {}: charts are written as .svg", plot.display()));
    }
    Ok(())
}

/// Enough for the longest context, and for one past the trained one if none is named.
fn default_tokens(args: &CompareArgs, opened: &Opened) -> usize {
    let wanted = match args.contexts.iter().max() {
        Some(&longest) => longest,
        None => opened.model.trained_context().map_or(0, |trained| trained * 2),
    };
    wanted.max(DEFAULT_TOKENS)
}

/// Says so if the comparison can't show anything.
fn hint(args: &CompareArgs, opened: &Opened, plan: &Plan) {
    let trained = plan.rope.original_context.or(opened.model.trained_context());
    if let (Some(trained), Factor::Auto, true) = (trained, plan.factor, inspect::has_rope(&opened.model))
        && plan.contexts.iter().all(|&context| context <= trained)
        && !args.json
    {
        note(&format!(
            "no context is past the {trained} tokens the model was trained for, so there is nothing to scale: give \
             longer --contexts, and a --text that fills them"
        ));
    }
}

fn plan(args: &CompareArgs, opened: &Opened, tokens: usize) -> Result<Plan> {
    let rope = args.model.rope.to_override();
    let trained = rope.original_context.or(opened.model.trained_context());
    let bos = opened.bos(args.text.bos)?;
    Ok(Plan {
        contexts: unique(if args.contexts.is_empty() {
            default_contexts(trained, tokens)
        } else {
            args.contexts.clone()
        }),
        modes: unique(if args.modes.is_empty() { default_modes(opened) } else { args.modes.clone() }),
        factor: args.factor,
        stride: args.text.stride,
        bos,
        rope,
        length: model::window_length(args.model.rope.rope_length),
        seed: args.seed,
    })
}

/// All that apply to any RoPE model; others can only be had as they are.
fn default_modes(opened: &Opened) -> Vec<Mode> {
    if inspect::has_rope(&opened.model) { Mode::DEFAULT.to_vec() } else { vec![Mode::Checkpoint] }
}

/// The trained context and its next three doublings, as far as the text reaches.
fn default_contexts(trained: Option<usize>, tokens: usize) -> Vec<usize> {
    let first = trained.unwrap_or(512).min(tokens);
    let doublings = [1, 2, 4, 8].into_iter().map(|times| first * times);
    doublings.filter(|&context| context <= tokens).collect()
}

fn unique<T: PartialEq>(items: Vec<T>) -> Vec<T> {
    items.into_iter().fold(vec![], |mut kept, item| {
        if !kept.contains(&item) {
            kept.push(item);
        }
        kept
    })
}

fn write_files(args: &CompareArgs, opened: &Opened, cells: &[Cell]) -> Result<()> {
    if let Some(path) = &args.csv {
        write_file(path, |out| Ok(out.write_all(csv(cells).as_bytes())?))?;
    }
    if let Some(path) = &args.plot {
        let chart = svg(cells, &format!("Perplexity of {} by context", opened.name));
        write_file(path, |out| Ok(out.write_all(chart.as_bytes())?))?;
    }
    Ok(())
}

fn report(opened: &Opened, text: &str, tokens: usize, cells: &[Cell]) -> String {
    let width = width();
    let mut out = String::new();
    let trained = opened.model.trained_context().map_or(String::new(), |n| format!(", trained to {n}"));
    out.push_str(&wrap(&format!("model {}{trained}", opened.name), width));
    out.push('\n');
    out.push_str(&wrap(&format!("text  {text}, first {tokens} tokens"), width));
    out.push_str("\n\n");
    out.push_str(&table(cells, TableStyle { width, color: color() }));
    out.push('\n');
    for line in verdict(cells) {
        out.push_str(&wrap(&line, width));
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn default_contexts_double_from_the_trained_one_while_the_text_lasts() {
        assert_eq!(default_contexts(Some(256), 16384), [256, 512, 1024, 2048]);
        assert_eq!(default_contexts(Some(8192), 16384), [8192, 16384]);
        assert_eq!(default_contexts(Some(8192), 100), [100]);
        assert_eq!(default_contexts(None, 1024), [512, 1024]);
    }

    #[test]
    fn repeats_are_dropped() {
        assert_eq!(unique(vec![1, 2, 1, 3, 2]), [1, 2, 3]);
    }
}
