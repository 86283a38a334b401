//! What a position encoding is and what follows from it, in numbers for people and for JSON. No model is run.

pub mod analysis;
mod describe;
pub mod effects;

pub use describe::{Description, describe};
pub use effects::Effects;
