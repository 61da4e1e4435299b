"""What happens with shards: recipes, the network, training, embedding, evaluation, reports."""
