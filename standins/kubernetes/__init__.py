"""Stand-ins for a cluster: an API server of custom resources, and Karpenter. For tests only."""
