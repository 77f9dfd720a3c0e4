"""Running experiments: which arm answers, copies for shadow arms, and rules that stop arms."""
