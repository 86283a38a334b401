//! Retrieval as a heat map for a terminal: one block per mode, depths down, contexts across, percentages in the cells.
//!
//! Colour only repeats what the numbers say, so without it nothing is lost.

use super::TableStyle;
use super::blocks::fill;
use crate::passkey::{Passkey, Share};

/// Columns of the labels and of a cell.
const LABEL: usize = 12;
const CELL: usize = 7;
const RESET: &str = "\x1b[0m";

/// The heat map, each line ending in a newline.
pub fn heat(passkey: &Passkey, style: TableStyle) -> String {
    let across = ((style.width.max(LABEL + CELL) - LABEL) / CELL).max(1);
    let mut out = String::new();
    for mode in &passkey.modes {
        for contexts in passkey.contexts.chunks(across) {
            block(&mut out, passkey, mode, contexts, style.color);
            out.push('\n');
        }
    }
    let (trials, digits) = (passkey.trials, passkey.digits);
    let legend = format!("% of {trials} trials answered with the very {digits} digits; depth: where the key stands");
    out.push_str(&fill(&legend, style.width, ""));
    out.push('\n');
    out
}

fn block(out: &mut String, passkey: &Passkey, mode: &str, contexts: &[usize], color: bool) {
    let mut line = format!("{mode:<LABEL$}");
    for context in contexts {
        line.push_str(&format!("{context:>CELL$}"));
    }
    out.push_str(line.trim_end());
    out.push('\n');
    let depths = passkey.depths.iter().map(|&depth| (format!("depth {:>3.0}%", depth * 100.0), Some(depth)));
    for (label, depth) in depths.chain([("all".to_string(), None)]) {
        let mut line = format!("{label:<LABEL$}");
        for &context in contexts {
            line.push_str(&figure(passkey.share(mode, context, depth).map(Share::value), color));
        }
        out.push_str(&line);
        out.push('\n');
    }
}

/// A percentage on a background between red and green.
fn figure(share: Option<f64>, color: bool) -> String {
    /// Five steps of the 256-colour palette, each read with black text on it.
    const STEPS: [u8; 5] = [210, 216, 222, 186, 120];
    let Some(share) = share else { return " ".repeat(CELL) };
    let text = format!("{:>width$}", format!("{:.0}", share * 100.0), width = CELL - 1);
    if !color {
        return format!(" {text}");
    }
    let step = STEPS[((share * STEPS.len() as f64) as usize).min(STEPS.len() - 1)];
    format!(" \x1b[30;48;5;{step}m{text}{RESET}")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::passkey::PasskeyCell;

    pub(crate) fn passkey() -> Passkey {
        let contexts = vec![4096, 8192, 16384, 32768, 65536];
        let depths = vec![0.0, 0.5, 1.0];
        let modes = vec!["none".to_string(), "ntk-by-parts".to_string()];
        let mut cells = vec![];
        for mode in &modes {
            for &context in &contexts {
                for (i, &depth) in depths.iter().enumerate() {
                    let correct = if mode == "none" { 0 } else { i };
                    let mode = mode.clone();
                    cells.push(PasskeyCell {
                        mode,
                        context,
                        depth,
                        factor: 2.0,
                        trials: 2,
                        correct,
                        seconds: 1.0,
                        same_as: None,
                    });
                }
            }
        }
        Passkey { haystack: "essay".into(), digits: 5, seed: 0, trials: 2, contexts, depths, modes, cells }
    }

    #[test]
    fn every_figure_is_there_in_any_width() {
        for width in [20, 40, 100] {
            let text = heat(&passkey(), TableStyle { width, color: false });
            assert!(text.lines().all(|line| line.chars().count() <= width), "{width}\n{text}");
            assert!(!text.contains('\x1b'));
            let figures = |n: &str| text.split_whitespace().filter(|word| *word == n).count();
            // Depth 1 is found always, depth 0 never, all together half the time.
            assert_eq!((figures("100"), figures("0") > 20), (5, true), "{text}");
            assert_eq!(figures("50"), 10, "{text}");
        }
    }

    #[test]
    fn colour_changes_no_column() {
        let plain = heat(&passkey(), TableStyle { width: 80, color: false });
        let mut colored = heat(&passkey(), TableStyle { width: 80, color: true });
        for step in [210, 216, 222, 186, 120] {
            colored = colored.replace(&format!("\x1b[30;48;5;{step}m"), "");
        }
        assert_eq!(colored.replace(RESET, ""), plain);
    }
}
