//! Measured numbers of one thing.

/// At least one number, from the least to the greatest.
#[derive(Debug, Clone, PartialEq)]
pub struct Samples(Vec<f64>);

impl Samples {
    /// None without a number.
    pub fn new(mut numbers: Vec<f64>) -> Option<Self> {
        numbers.sort_by(f64::total_cmp);
        (!numbers.is_empty()).then_some(Self(numbers))
    }

    /// A number that was measured once.
    pub fn one(number: f64) -> Self {
        Self(vec![number])
    }

    /// All of them, from the least.
    pub fn all(&self) -> &[f64] {
        &self.0
    }

    /// The least.
    pub fn least(&self) -> f64 {
        self.0[0]
    }

    /// The greatest.
    pub fn most(&self) -> f64 {
        self.0[self.0.len() - 1]
    }

    /// Half of them are at most this.
    pub fn median(&self) -> f64 {
        self.percentile(50)
    }

    /// 95 of 100 are at most this.
    pub fn p95(&self) -> f64 {
        self.percentile(95)
    }

    /// The nearest rank: always a number that was measured.
    fn percentile(&self, percent: usize) -> f64 {
        let rank = (self.0.len() * percent).div_ceil(100);
        self.0[rank.max(1) - 1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_numbers_that_were_measured() {
        let numbers = (1..=20).rev().map(f64::from).collect();
        let samples = Samples::new(numbers).unwrap();
        assert_eq!(samples.median(), 10.0);
        assert_eq!(samples.p95(), 19.0);
        assert_eq!((samples.least(), samples.most()), (1.0, 20.0));
        let three = Samples::new(vec![3.0, 1.0, 2.0]).unwrap();
        assert_eq!((three.median(), three.p95()), (2.0, 3.0));
        let one = Samples::one(7.0);
        assert_eq!((one.median(), one.p95(), one.least()), (7.0, 7.0, 7.0));
        assert_eq!(Samples::new(Vec::new()), None);
    }
}
