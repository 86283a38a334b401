//! attn-eval
