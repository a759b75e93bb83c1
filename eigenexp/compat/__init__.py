"""plenoptic's ``Eigendistortion``: its calls, its files, its checks, on this engine."""
