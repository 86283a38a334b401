//! What a position encoding is and what follows from it, in numbers for people and for JSON. No model is run.

pub mod analysis;
mod describe;
mod distances;
pub mod effects;

pub use describe::{Description, describe};
pub use distances::seen_distances;
pub use effects::Effects;
