//! What a browser calls: JSON in, JSON out.

use crate::Playground;
use js_sys::Function;
use serde_json::Value;
use wasm_bindgen::prelude::*;

#[wasm_bindgen]
extern "C" {
    #[wasm_bindgen(js_namespace = console, js_name = error)]
    fn complain(message: &str);
}

/// The program as the page sees it.
#[wasm_bindgen]
#[derive(Debug, Default)]
pub struct Program(Playground);

#[wasm_bindgen]
impl Program {
    /// A program without models.
    #[wasm_bindgen(constructor)]
    #[must_use]
    pub fn new() -> Self {
        std::panic::set_hook(Box::new(|info| complain(&info.to_string())));
        Self::default()
    }

    /// See [`Playground::give`].
    pub fn give(&mut self, file: Vec<u8>) {
        self.0.give(file);
    }

    /// See [`Playground::answer`]; `tell` gets the partial results.
    ///
    /// # Errors
    /// As [`Playground::answer`], in one line.
    pub fn ask(&mut self, question: &str, tell: Option<Function>) -> Result<String, JsError> {
        let mut emit = |part: &Value| {
            if let Some(tell) = &tell {
                // An error of the page's function does not matter here.
                let _ = tell.call1(&JsValue::NULL, &part.to_string().into());
            }
        };
        let answer = self.0.answer(question, &mut emit);
        answer.map(|answer| answer.to_string()).map_err(|error| JsError::new(&attn_eval::one_line(error.as_ref())))
    }
}
