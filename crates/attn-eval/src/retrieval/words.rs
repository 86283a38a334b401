//! The words of the tasks: plain English nouns, and adjectives that make keys together with them.

use crate::rng::Rng;

/// Nouns; none occurs twice.
const NOUNS: &str = include_str!("words.txt");

const ADJECTIVES: [&str; 40] = [
    "amber", "ancient", "brave", "bright", "broad", "calm", "clever", "cold", "curious", "dark", "distant", "eager",
    "early", "faint", "famous", "gentle", "golden", "grand", "hidden", "hollow", "honest", "humble", "idle", "jolly",
    "kind", "late", "lively", "lonely", "lucky", "modest", "narrow", "noble", "proud", "quick", "quiet", "rapid",
    "silent", "simple", "steady", "strange",
];

/// All nouns, in an order that the generator decides.
pub(super) fn shuffled(rng: &mut Rng) -> Vec<&'static str> {
    let mut nouns: Vec<&str> = NOUNS.split_whitespace().collect();
    shuffle(&mut nouns, rng);
    nouns
}

/// Puts items into a random order (Fisher and Yates).
pub(super) fn shuffle<T>(items: &mut [T], rng: &mut Rng) {
    for last in (1..items.len()).rev() {
        items.swap(last, rng.below(last + 1));
    }
}

/// `count` different keys such as `quiet-harbor`.
pub(super) fn keys(count: usize, rng: &mut Rng) -> Vec<String> {
    let nouns = shuffled(rng);
    nouns.iter().take(count).map(|noun| format!("{}-{noun}", ADJECTIVES[rng.below(ADJECTIVES.len())])).collect()
}

/// `count` different numbers of `digits` digits.
pub(super) fn numbers(count: usize, digits: u32, rng: &mut Rng) -> Vec<String> {
    let smallest = 10usize.pow(digits - 1);
    let mut numbers: Vec<String> = vec![];
    while numbers.len() < count {
        let number = (smallest + rng.below(9 * smallest)).to_string();
        if !numbers.contains(&number) {
            numbers.push(number);
        }
    }
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn words_are_plain_and_none_is_there_twice() {
        let words = shuffled(&mut Rng::new(1));
        let different: HashSet<&str> = words.iter().copied().chain(ADJECTIVES).collect();
        assert!(words.len() >= 400 && different.len() == words.len() + ADJECTIVES.len());
        assert!(different.iter().all(|word| word.chars().all(|c| c.is_ascii_lowercase())));
        assert_ne!(words, shuffled(&mut Rng::new(2)));
        assert_eq!(words, shuffled(&mut Rng::new(1)));
    }

    #[test]
    fn keys_and_numbers_are_different_ones() {
        let mut rng = Rng::new(3);
        let keys: HashSet<String> = keys(30, &mut rng).into_iter().collect();
        let numbers: HashSet<String> = numbers(500, 3, &mut rng).into_iter().collect();
        assert_eq!((keys.len(), numbers.len()), (30, 500));
        assert!(numbers.iter().all(|number| number.len() == 3));
    }
}
