//! One colour and one kind of line per mode, the same in every chart and on every page.

use crate::compare::Mode;

/// Colours on a light background, which can be distinguished with any colour vision and have the contrast that WCAG asks for.
pub const LIGHT: [&str; 8] = ["#111827", "#b45309", "#0369a1", "#047857", "#a21caf", "#b91c1c", "#4d7c0f", "#6d28d9"];
/// The colours on a dark background.
pub const DARK: [&str; 8] = ["#f3f4f6", "#fbbf24", "#38bdf8", "#34d399", "#f0abfc", "#f87171", "#a3e635", "#c4b5fd"];
/// Lines that share a colour differ in their dashes.
pub const DASHES: [&str; 4] = ["none", "8 4", "2 3", "10 4 2 4"];

/// Names in the order of their colours. Every mode with a name of its own has a fixed place; other names come after them.
pub fn order<'a>(names: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let own = Mode::none().to_string();
    let mut order: Vec<String> = vec![own.clone()];
    order.extend(Mode::all().map(|mode| mode.to_string()).filter(|name| *name != own));
    for name in names {
        if !order.iter().any(|known| known == name) {
            order.push(name.to_string());
        }
    }
    order
}

/// The palette as variables of a style sheet.
pub(super) fn variables(colors: [&str; 8]) -> String {
    colors.iter().enumerate().map(|(i, color)| format!("--s{i}: {color}; ")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mode_keeps_its_place_whatever_is_beside_it() {
        let (few, many) = (order(["yarn", "rerope:window=3"]), order(["a", "rerope:window=3", "yarn"]));
        let place = |order: &[String], name: &str| order.iter().position(|known| known == name);
        assert_eq!(place(&few, "yarn"), place(&many, "yarn"));
        assert_eq!((place(&few, "none"), place(&many, "a")), (Some(0), Some(order([]).len())));
    }
}
