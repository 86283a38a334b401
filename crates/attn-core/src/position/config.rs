//! Stub: the real file comes from the position branch.
/// Overrides a checkpoint's rotary settings, as the command line spells them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RopeOverride {
    /// none|default|linear|ntk|dynamic|ntk-by-parts|yarn|longrope|llama3|proportional
    pub scaling: Option<String>,
    /// Scaling factor.
    pub factor: Option<f64>,
    /// rope_theta.
    pub theta: Option<f64>,
    /// Original context.
    pub original_context: Option<usize>,
    /// Further parameters, key and value.
    pub params: Vec<(String, String)>,
}
