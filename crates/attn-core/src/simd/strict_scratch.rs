//! What takes the place of `scratch` in tests with debug assertions: buffers that are allocations of their own, exactly as
//! long as asked for and full of NaN. A sanitizer sees what goes past an end, and results show what is read before it is
//! written.

/// Working memory of one unit of work.
pub(crate) struct Scratch(Vec<Vec<f32>>);

impl Scratch {
    pub(crate) fn take() -> Self {
        Self(Vec::new())
    }

    /// One buffer of each size.
    pub(crate) fn split<const N: usize>(&mut self, sizes: [usize; N]) -> [&mut [f32]; N] {
        self.0 = sizes.map(|n| vec![f32::NAN; n]).into();
        let mut buffers = self.0.iter_mut();
        sizes.map(|_| buffers.next().expect("one for each size").as_mut_slice())
    }
}
